"""What the server of the judge's page answers, and to whom."""

import http.client
import json
import re
import threading
from io import BytesIO

import pytest
from helpers.contests import write_sweep
from PIL import Image, ImageChops

from t2i.judging.contestants import read_contest
from t2i.judging.server import Server
from t2i.judging.session import Session
from t2i.runs.judgements import Judgements

SETTINGS = re.compile(r"gamma|snr|loss|seed-|synthetic|step-|multirun", re.IGNORECASE)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("gamma") / "sweep_of_gamma").resolve()


@pytest.fixture
def server(sweep):
    (sweep / "judgements.jsonl").unlink(missing_ok=True)
    server = Server(Session(read_contest([sweep]), Judgements(sweep), seed=0, count=20))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def request(server, method, path, body=None, **headers):
    """Send a request as a program that may write any header; returns status, headers and content."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    text = json.dumps(body) if body is not None else None
    kinds = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, text, kinds | {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, str(answer.headers), content


def post(server, what, **body):
    status, _, content = request(server, "POST", f"/{server.token}/{what}", body)
    return status, json.loads(content)


def test_it_listens_on_this_machine_only(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.socket.getsockname()[0] == "127.0.0.1"


def test_nothing_is_answered_without_the_token(server):
    for path in ("/", "/page.js", "/state", "/x/", f"/{server.token[:-1]}/", f"/{server.token}x/"):
        status, _, content = request(server, "GET", path)
        assert status == 403
        assert server.token.encode() not in content
        assert request(server, "POST", path, {})[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
    ids=str,
)
def test_other_pages_in_the_same_browser_are_refused(headers, server):
    """A foreign name that resolves to 127.0.0.1 (DNS rebinding), and requests that a foreign page sends (CSRF)."""
    assert request(server, "GET", f"/{server.token}/", **headers)[0] == 403
    assert request(server, "POST", f"/{server.token}/state", {"judge": "anna"}, **headers)[0] == 403


def test_its_own_page_is_answered_under_both_names_of_this_machine(server):
    for name in ("127.0.0.1", "localhost"):
        host = f"{name}:{server.server_address[1]}"
        headers = {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
        assert request(server, "POST", f"/{server.token}/state", {"judge": "anna"}, **headers)[0] == 200


def test_what_no_page_sends_is_refused(server):
    where = f"/{server.token}/vote"
    assert request(server, "POST", where, {"judge": "a" * 20_000})[0] == 403
    assert request(server, "POST", where, ["anna"])[0] == 403
    assert request(server, "POST", where, {"judge": 3})[0] == 403
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    connection.request("POST", where, "judge=anna", {"Content-Type": "application/x-www-form-urlencoded"})
    assert connection.getresponse().status == 403
    for body in (
        {"judge": "anna", "id": "none", "choice": "left"},
        {"judge": " ", "choice": "left"},
        {"judge": "a" * 61},
    ):
        assert post(server, "vote", **body)[0] == 409


def test_no_path_leads_to_another_file(server):
    for path in ("../server.py", "server.py", "images/../page.html", "images/", "%2e%2e/judge.py", "judgements.jsonl"):
        assert request(server, "GET", f"/{server.token}/{path}")[0] == 404


def test_everything_that_the_page_gets_before_a_vote_names_no_setting(server, sweep):
    """Page, scripts, answers, headers, names of images, and what the files of images say beside their pixels."""
    got = [request(server, "GET", f"/{server.token}/{path}") for path in ("", "page.js", "page.css")]
    got.append(request(server, "POST", f"/{server.token}/state", {"judge": "anna"}))
    state = json.loads(got[-1][2])
    images = [pair[side] for pair in state["pairs"] for side in ("left", "right")]
    got += [request(server, "GET", f"/{server.token}/images/{name}") for name in images]
    for status, headers, content in got:
        assert status == 200
        assert not SETTINGS.search(headers)
        assert "Last-Modified" not in headers
        assert "ETag" not in headers
        assert not SETTINGS.search(content.decode("latin-1"))
    assert all(re.fullmatch(r"[0-9a-f]{32}", name) for name in images)


def test_pixels_are_those_of_the_run(server):
    session = server.session
    pair = session._schedule("anna")[0]
    name = session.state("anna")["pairs"][0]["left"]
    served = Image.open(BytesIO(session.png(name)))
    file = pair.left.images.file(pair.prompt, pair.seed)
    assert served.info == {}
    assert ImageChops.difference(served, Image.open(file)).getbbox() is None


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_a_damaged_image_costs_its_pairs_only(content, tmp_path, caplog):
    sweep = write_sweep(tmp_path, seeds=(0,)).resolve()
    contest = read_contest([sweep])
    session = Session(contest, Judgements(sweep), seed=0, count=20)
    second = session._schedule("anna")[1]
    second.left.images.file(second.prompt, second.seed).write_bytes(content)
    assert second.id not in [pair["id"] for pair in session.state("anna")["pairs"]]
    while pairs := session.state("anna")["pairs"]:
        state = session.vote("anna", pairs[0]["id"], "left")
    assert state["done"] == state["total"] >= 20
    assert caplog.text.count("can't be read, and its pair is left out") >= 1


def test_the_policy_allows_nothing_from_elsewhere(server):
    _, headers, content = request(server, "GET", f"/{server.token}/")
    policy = re.search(r"Content-Security-Policy: (.*)", headers)[1]
    assert policy.startswith("default-src 'none'; ")
    assert set(re.findall(r"(?<=[ ;])(?:'[a-z-]+'|[a-z]+:[^ ;]*|\*)", policy)) == {"'none'", "'self'", "data:"}
    assert "X-Frame-Options: DENY" in headers
    assert not re.search(r"https?://|//[a-z]", content.decode())


def test_a_vote_counts_once_however_often_it_is_sent(server):
    _, state = post(server, "state", judge="anna")
    body = {"judge": "anna", "id": state["pairs"][0]["id"], "choice": "left"}
    answers = [post(server, "vote", **body)[1] for _ in range(3)]
    answers.append(post(server, "vote", **(body | {"choice": "right"}))[1])
    assert {answer["done"] for answer in answers} == {1}
    (vote,) = server.session.judgements.read()[0].values()
    assert (vote.judge, vote.choice) == ("anna", "left")


def test_the_last_vote_can_be_taken_back(server):
    _, before = post(server, "state", judge="anna")
    for _ in range(2):
        _, state = post(server, "state", judge="anna")
        post(server, "vote", judge="anna", id=state["pairs"][0]["id"], choice="equal")
    _, state = post(server, "undo", judge="anna")
    assert state["done"] == 1
    assert state["pairs"][0]["id"] == before["pairs"][1]["id"]
    assert post(server, "undo", judge="anna")[1]["pairs"][0]["id"] == before["pairs"][0]["id"]
    assert post(server, "undo", judge="anna")[1]["done"] == 0


def test_another_server_on_the_same_folder_goes_on(server, sweep):
    _, state = post(server, "state", judge="anna")
    post(server, "vote", judge="anna", id=state["pairs"][0]["id"], choice="right")
    other = Session(read_contest([sweep]), Judgements(sweep), seed=0, count=20)
    assert other.state("anna")["done"] == 1
    other.vote("anna", other.state("anna")["pairs"][0]["id"], "left")
    assert post(server, "state", judge="anna")[1]["done"] == 2
    assert post(server, "state", judge="ben")[1]["done"] == 0


def test_a_vote_says_which_image_was_where(server, sweep):
    pair = server.session._schedule("anna")[0]
    post(server, "vote", judge="anna", id=pair.id, choice="right")
    (vote,) = server.session.judgements.read()[0].values()
    assert (vote.left.run, vote.right.run) == (pair.left.folder.name, pair.right.folder.name)
    assert (vote.prompt, vote.seed, vote.text) == (pair.prompt, pair.seed, f"a drawing of number {pair.prompt}")
    assert vote.left.sha256 == pair.left.shown(pair.prompt, pair.seed, sweep).sha256
