"""W&B without its server: its files are read back with W&B's own command."""

import http.server
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import wandb
from helpers.runs import compose
from helpers.trackers import run_info
from omegaconf import OmegaConf
from PIL import Image
from wandb import wandb_agent
from wandb.sdk.launch.sweeps.utils import load_sweep_config

from t2i.config import ConfigError
from t2i.config.compose import CONF
from t2i.tracking import RunInfo, Wandb
from t2i.tracking.guarded import Guarded
from t2i.tracking.offline import records, repair, step_of

PROGRAM = Path(sys.executable).parent / "wandb"


def tracker(mode="auto", patience=2):
    return Wandb(project="t2i", mode=mode, patience=patience)


def inspect(file: Path) -> list[dict]:
    """The records of a file of W&B's, each under the name of its type."""
    output = subprocess.run([PROGRAM, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in output.stdout.splitlines()]


def of_type(records, kind):
    return [record[kind] for record in records if record["type"] == kind]


def files(folder: Path) -> list[Path]:
    """The files that the run in `folder` has written, oldest first."""
    wandb.teardown()  # waits for the process that writes the files
    return sorted(folder.glob("wandb/*run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)


def written(folder: Path, kind: str) -> list:
    """All records of a kind in the run's files."""
    all_records = [record for file in files(folder) for _, record in records(file.read_bytes())]
    return [getattr(record, kind) for record in all_records if record.WhichOneof("record_type") == kind]


def steps(folder: Path) -> list[int]:
    return [step_of(row) for row in written(folder, "history")]


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))


@pytest.fixture
def fresh_wandb():
    """W&B reads its environment once in a process; make it read it again."""
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = tracker()
    config = {"loss": {"snr_gamma": 5.0}, "optimizer": {"lr": 1e-4}}
    run_id, before = run.start(run_info(folder, "snr_gamma-5", config=config, group="gamma", tags=["loss.snr_gamma=5"]))
    run.log(0, {"val/loss": 1.0})
    run.images(10, "samples", [Image.new("RGB", (8, 8), color) for color in ("red", "blue")], ["red apple", "sea"])
    run.log(10, {"train/loss": 0.5})
    run.finish(succeeded=True)
    assert before == -1
    return run_id, inspect(*files(folder))


@pytest.mark.slow
def test_config_group_and_tags_are_there_for_a_dashboard(recorded):
    run_id, records = recorded
    (run,) = of_type(records, "run")
    assert run["run_id"] == run_id
    assert (run["display_name"], run["run_group"], run["tags"]) == ("snr_gamma-5", "gamma", ["loss.snr_gamma=5"])
    assert run["config"]["update"]["loss"] == {"snr_gamma": 5.0}
    assert run["config"]["update"]["optimizer"] == {"lr": 1e-4}


@pytest.mark.slow
def test_the_command_that_it_keeps_holds_no_secret(fresh_wandb, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    typed = ["t2i", "steps=1", "samples.prompts=[hf_abcdefghijklmnop]"]
    monkeypatch.setattr(sys, "argv", typed)
    run = tracker("offline")
    run.start(run_info(tmp_path))
    run.finish(succeeded=True)
    assert sys.argv is typed
    assert of_type(inspect(*files(tmp_path)), "environment")[0]["args"] == ["steps=1", "samples.prompts=[[secret]]"]
    holding = [file for file in tmp_path.rglob("*") if file.is_file() and b"klmnop" in file.read_bytes()]
    assert not holding


def test_no_link_of_a_sweep_leads_its_own_links_elsewhere(fresh_wandb, tmp_path):
    home, run = tmp_path / "home", tmp_path / "gamma" / "run"
    home.mkdir()
    run.mkdir(parents=True)
    (home / "mine").symlink_to("not-mounted")
    (tmp_path / "gamma" / "wandb").symlink_to(home)
    started = tracker("offline")
    started.start(run_info(run, group="gamma"))
    started.finish(succeeded=True)
    assert [file.name for file in home.iterdir()] == ["mine"]


@pytest.mark.slow
def test_curves_and_images_share_the_step_as_axis(recorded):
    metrics = of_type(recorded[1], "metric")
    assert {"glob_name": "*", "options": {"defined": True, "step_sync": True}, "step_metric": "step"} in metrics
    first, last = (row["item"] for row in of_type(recorded[1], "history"))
    assert (first["step"], first["_step"], first["val/loss"]) == (0, 0, 1.0)
    assert (last["step"], last["_step"], last["train/loss"]) == (10, 10, 0.5)
    assert last["samples.captions"] == ["red apple", "sea"]
    assert len(set(last["samples.filenames"])) == 2


@pytest.mark.slow
def test_the_charts_of_noise_levels_are_hidden_unless_they_are_asked_for(recorded, fresh_wandb, tmp_path):
    """They are two thirds of all charts, and would come before val/loss. Their values are logged in any case."""

    def hidden(records):
        metrics = [metric for metric in of_type(records, "metric") if metric["options"].get("hidden")]
        return {metric["glob_name"] for metric in metrics if "glob_name" in metric}

    assert hidden(recorded[1]) == {"train/snr_bin_*", "val/snr_bin_*", "val/ema/snr_bin_*"}
    asked = Wandb(project="t2i", mode="offline", patience=2, snr_bins=True)
    asked.start(run_info(tmp_path))
    asked.finish(succeeded=True)
    assert hidden(inspect(*files(tmp_path))) == set()


@pytest.mark.slow
def test_the_log_and_the_model_are_there(fresh_wandb, tmp_path):
    """The log from its first line on, and with log_model what the run exported."""
    (tmp_path / "train.log").write_text("10:00:00 encoding 3 images\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.safetensors").write_text("weights")
    run = Wandb(project="t2i", mode="offline", patience=2, log_model=True)
    run.start(run_info(tmp_path))
    logging.getLogger("t2i").warning("step 1")
    run.finish(succeeded=True)
    logging.getLogger("t2i").warning("after the end")
    found = inspect(*files(tmp_path))
    lines = "".join(output["line"] for output in of_type(found, "output_logger"))
    assert lines.startswith("10:00:00 encoding 3 images\n")
    assert lines.rstrip().endswith("step 1")
    (artifact,) = of_type(found, "artifact")
    assert artifact["type"] == "model"


def test_without_a_key_it_is_offline_and_does_not_ask(no_login, tmp_path):
    run = tracker("auto")
    run.start(run_info(tmp_path))
    run.finish(succeeded=False)
    assert [end.exit_code for end in written(tmp_path, "exit")] == [1]


def test_online_without_a_login_falls_back_to_offline(no_login, tmp_path, caplog):
    run = tracker("online")
    run.start(run_info(tmp_path))
    run.log(0, {"train/loss": 1.0})
    run.finish(succeeded=True)
    assert "the run continues offline" in caplog.text
    assert steps(tmp_path) == [0]


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"tracker.mode=on is not known; choose from auto, online"):
        tracker("on")


KILLED = """
import os, signal, sys
from pathlib import Path
from t2i.tracking import RunInfo, Wandb

tracker = Wandb("t2i", "offline", 2)
info = RunInfo(folder=Path(sys.argv[1]), name="name", group=None, tags=[], config={}, run_id=None, last_step=-1)
print(tracker.start(info)[0], flush=True)
for step in range(400):
    tracker.log(step, {"train/loss": 1.0, "before": 1.0})
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_run_continues_under_its_id_with_every_step_once(tmp_path):
    """The process dies with a record half written. The run continues from a checkpoint that is newer than what is left
    of the file, and then from an older one."""
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE, text=True)
    assert killed.returncode == -signal.SIGKILL
    run_id = killed.stdout.strip()
    for last_step, end in ((500, 510), (100, 120)):
        run = tracker("offline")
        same_id, recorded = run.start(run_info(tmp_path, run_id=run_id, last_step=last_step))
        assert same_id == run_id
        assert 100 <= recorded < min(last_step + 1, 400)
        for step in range(recorded + 1, end):
            run.log(step, {"train/loss": 2.0})
        run.finish(succeeded=True)
        assert steps(tmp_path) == list(range(end))
    fragments = [inspect(file) for file in files(tmp_path)]
    assert [of_type(records, "run")[0]["run_id"] for records in fragments] == [run_id] * 2
    losses = [row["item"]["train/loss"] for records in fragments for row in of_type(records, "history")]
    assert losses == [1.0] * 101 + [2.0] * 19


def test_what_is_uploaded_already_is_not_cut(tmp_path):
    run = tracker("offline")
    run_id, _ = run.start(run_info(tmp_path))
    for step in range(10):
        run.log(step, {"train/loss": 1.0})
    run.finish(succeeded=False)
    (file,) = files(tmp_path)
    file.with_suffix(".wandb.synced").touch()
    before = file.read_bytes()
    assert repair(tmp_path / "wandb", run_id, 4) == 9
    assert file.read_bytes() == before


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_found_together(tmp_path):
    sweep = tmp_path / "gamma"
    for name in ("snr_gamma-1", "snr_gamma-5", "snr_gamma-5"):
        run = tracker("offline")
        (sweep / name).mkdir(parents=True, exist_ok=True)
        run.start(run_info(sweep / name, name, group="gamma"))
        run.log(0, {"train/loss": 1.0})
        run.finish(succeeded=True)
    links = list((sweep / "wandb").iterdir())
    assert sorted(link.resolve() for link in links) == sorted(sweep.glob("snr_gamma-*/wandb/offline-run-*"))
    assert not any(link.readlink().is_absolute() for link in links)
    shutil.rmtree(links[0].resolve())
    run.start(run_info(sweep / "snr_gamma-1", "snr_gamma-1", group="gamma"))
    run.finish(succeeded=True)
    assert not links[0].is_symlink()
    listed = subprocess.run([PROGRAM, "sync", "--dry-run", sweep / "wandb"], capture_output=True, text=True, check=True)
    assert "Would sync 3 run(s)" in listed.stderr


def test_a_single_run_with_a_group_writes_only_to_its_own_folder(tmp_path):
    (tmp_path / "multirun" / "mine").mkdir(parents=True)
    run = tracker("offline")
    run.start(run_info(tmp_path / "multirun" / "mine", "mine", group="gamma"))
    run.finish(succeeded=True)
    assert [path.name for path in (tmp_path / "multirun").iterdir()] == ["mine"]


class Server(http.server.ThreadingHTTPServer):
    """As much of W&B's server as a client needs to begin a run; it can stop answering."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.silent = threading.Event()
        self.runs = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answers(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(body) if self.path == "/graphql" else {}
        if self.server.silent.is_set():
            time.sleep(30)
        data = {"serverInfo": {"features": []}, "viewer": {"id": "V", "entity": "me", "username": "me", "flags": "{}"}}
        if "UpsertBucket" in request.get("query", ""):
            project = {"id": "P", "name": "t2i", "entity": {"id": "E", "name": "me"}}
            bucket = {"id": "B", "displayName": "", "description": "", "config": "{}", "project": project}
            bucket |= {"name": request["variables"]["name"], "sweepName": request["variables"]["sweep"]}
            self.server.runs.append([request["variables"][key] for key in ("name", "sweep", "displayName")])
            data["upsertBucket"] = {"bucket": bucket | {"historyLineCount": 0, "tags": []}, "inserted": True}
        elif "createRunFiles" in request.get("query", ""):
            files = [{"name": name, "uploadUrl": self.path} for name in request["variables"]["files"]]
            data["createRunFiles"] = {"runID": "B", "uploadHeaders": [], "files": files}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, fresh_wandb):
    server = Server()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    yield server
    server.shutdown()


@pytest.mark.slow
def test_a_lost_network_causes_no_long_delay(server, tmp_path, caplog):
    run = Guarded(tracker("auto", patience=2))
    run.start(run_info(tmp_path))
    server.silent.set()
    began = time.monotonic()
    for step in range(100):
        run.log(step, {"train/loss": 1.0})
    assert time.monotonic() - began < 1
    run.finish(succeeded=True)
    assert time.monotonic() - began < 10
    assert (
        "the run continues without it, and its folder has everything; to upload what it got: wandb sync" in caplog.text
    )
    assert steps(tmp_path) == list(range(100))


def test_under_an_agent_the_sweep_names_the_run(server, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SWEEP_ID", "gamma123")
    monkeypatch.setenv("WANDB_RUN_ID", "abcd1234")
    run = tracker("auto")
    assert run.start(run_info(tmp_path, group="gamma123")) == ("abcd1234", -1)
    run.finish(succeeded=True)
    assert server.runs[0] == ["abcd1234", "gamma123", None]


def test_an_agent_runs_the_training_command(monkeypatch, tmp_path):
    """W&B's own agent turns the example into a command line that Hydra understands."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "gamma123")
    monkeypatch.setenv("PATH", str(PROGRAM.parent), prepend=os.pathsep)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "of an earlier run")  # the agent sets it
    started = []
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda command, env, **_: started.append((command, env)) or Mock())
    sweep = load_sweep_config(str(CONF / "wandb" / "minsnr.yaml"))
    agent = wandb_agent.Agent(api=None, queue=None)
    agent._sweep_command = sweep["command"]
    values = {"loss.snr_gamma": {"value": 20}, "optimizer.lr": {"value": 1.5e-5}}
    assert set(values) == set(sweep["parameters"])
    agent._command_run({"run_id": "abcd1234", "program": sweep["program"], "args": values})
    ((command, env),) = started
    command += ["--cfg", "job", "--resolve"]
    config = OmegaConf.create(subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert (config.loss.snr_gamma, config.optimizer.lr) == (20, 1.5e-5)
    assert (config.run, config.sweep) == ("gamma123/abcd1234", "gamma123")
    assert sweep["metric"] == {"name": "val/loss", "goal": "minimize"}


@pytest.mark.parametrize(
    ("name", "value"), [("WANDB_MODE", "cloud"), ("WANDB_INIT_TIMEOUT", "soon"), ("WANDB_QUIET", "perhaps")]
)
def test_a_variable_that_wandb_does_not_take_is_named_before_the_run(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"^the environment variable {name} has a value that W&B does not take"):
        tracker()
    tracker("disabled")


@pytest.mark.parametrize(
    ("project", "remedy"),
    [("team/t2i", "use tracker.entity=team tracker.project=t2i"), ("a#b", "has no #"), ("a/b/c", "has no /")],
)
def test_a_project_that_wandb_does_not_take_is_refused_before_anything_is_encoded(project, remedy):
    with pytest.raises(ConfigError, match=remedy):
        Wandb(project=project, mode="offline", patience=1)


def test_names_in_the_environment_count_unless_they_are_set_by_hand(monkeypatch):
    for name, value in (("PROJECT", "mine"), ("NAME", "first"), ("TAGS", "a,b")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    tracker = compose("tracker=wandb").tracker
    assert (tracker.project, tracker.name, tracker.tags) == ("mine", "first", "a,b")
    assert compose("tracker=wandb", "tracker.project=other").tracker.project == "other"
    monkeypatch.delenv("WANDB_PROJECT")
    assert compose("tracker=wandb").tracker.project == "t2i"


@pytest.mark.parametrize(("group", "name"), [(None, "first"), ("sweep", "run")])
def test_name_and_tags_reach_wandb(group, name, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(wandb, "init", lambda **arguments: given.update(arguments))
    tracker = Wandb("t2i", "offline", 1, name="first", tags="a, b,seed=1")
    info = RunInfo(tmp_path, "run", group, ["seed=1"], {}, None, -1)
    tracker._init(info)
    assert (given["name"], given["tags"]) == (name, ["seed=1", "a", "b"])
