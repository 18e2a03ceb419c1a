import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t2i.config import ConfigError
from t2i.evaluation.image_battery import ImageBattery
from t2i.evaluation.image_folder import by_prompt, images_of
from t2i.evaluation.prompt_list import read_prompts

PROMPTS = ["red apple", "cat face", "sun, with clouds"]


@pytest.fixture(params=[".txt", ".csv", ".tsv", ".jsonl", ".parquet"])
def file(request, tmp_path):
    file = tmp_path / f"prompts{request.param}"
    if request.param == ".txt":
        file.write_text("\n".join([*PROMPTS, "", PROMPTS[0]]))
    elif request.param == ".csv":
        file.write_text("id,caption\n" + "".join(f'{i},"{prompt}"\n' for i, prompt in enumerate(PROMPTS)))
    elif request.param == ".tsv":
        file.write_text("id\tcaption\n" + "".join(f"{i}\t{prompt}\n" for i, prompt in enumerate(PROMPTS)))
    elif request.param == ".jsonl":
        file.write_text("".join(json.dumps({"id": i, "caption": prompt}) + "\n" for i, prompt in enumerate(PROMPTS)))
    else:
        pq.write_table(pa.table({"id": [0, 1, 2], "caption": PROMPTS}), file)
    return file


def test_prompts_come_from_any_kind_of_file_each_once(file):
    assert read_prompts(str(file)) == PROMPTS
    if file.suffix != ".txt":
        with pytest.raises(ConfigError, match=r"evaluation\.column=id .*other than texts"):
            read_prompts(str(file), "id")
        with pytest.raises(ConfigError, match=r"has the columns id, caption, but not evaluation\.column=title"):
            read_prompts(str(file), "title")


def test_a_part_of_the_prompts_is_spread_over_all():
    prompts = [str(i) for i in range(100)]
    assert read_prompts(prompts, count=4) == ["12", "37", "62", "87"]
    assert read_prompts(prompts, count=200) == prompts


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.csv", "prompts.parquet", "prompts.pkl"])
def test_what_is_no_list_of_prompts_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match=rf"evaluation\.prompts=.*{name} is not a file"):
        read_prompts(str(tmp_path / name))
    (tmp_path / name).write_bytes(b"\xff\x00\xfe")
    with pytest.raises(ConfigError, match=r"evaluation\.(prompts|column)="):
        read_prompts(str(tmp_path / name))


def test_images_of_another_tool_are_found_by_their_names_or_text_files(tmp_path):
    from PIL import Image

    for name in (
        "red apple-0.png",
        "red apple-1.png",
        "cat_face_0001.jpg",
        "cat_face_0002.jpg",
        "0007.png",
        "0008.png",
    ):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for name in ("0007.txt", "0008.txt"):
        (tmp_path / name).write_text(PROMPTS[2])
    assert {prompt: len(files) for prompt, files in by_prompt(tmp_path).items()} == dict.fromkeys(PROMPTS[::-1], 2)
    images = images_of(tmp_path, ["Cat face", *PROMPTS[::2]], seeds=2)
    assert [file.name[:3] for file in images.files] == ["cat", "cat", "red", "red", "000", "000"]
    assert images[5].size == (4, 4)
    index = ImageBattery(PROMPTS, [5], steps=1, guidance_scale=1.0).files(tmp_path / "evaluated")
    index.write_index()
    assert by_prompt(index.folder)[PROMPTS[1]] == [index.file(1, 5)]
    with pytest.raises(ConfigError, match="lacks 3 images each for 3 of 3 prompts, such as 'red apple'"):
        images_of(tmp_path, PROMPTS, seeds=3)


def test_a_data_set_of_the_hub_is_read_by_its_tables(tmp_path, monkeypatch):
    """Those of its split train; from the Hub's cache where there is no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "datasets--someone--prompts"
    data = repository / "snapshots" / ("0" * 40) / "data"
    data.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    pq.write_table(pa.table({"Prompt": PROMPTS}), data / "train-00000-of-00001.parquet")
    pq.write_table(pa.table({"Prompt": ["another"]}), data / "test-00000-of-00001.parquet")
    assert read_prompts("someone/prompts", "Prompt") == PROMPTS
    with pytest.raises(
        ConfigError, match=r"train-00000-of-00001.parquet has the columns Prompt, but not one of prompt"
    ):
        read_prompts("someone/prompts")
    with pytest.raises(ConfigError, match=r"evaluation.prompts=someone/other is not on this machine"):
        read_prompts("someone/other")


def test_equal_texts_of_a_table_are_read_once(tmp_path):
    """Some kilobytes of Parquet can stand for any number of them."""
    once = pa.array(["a" * 100_000, "red apple"])
    numbers = pa.array([0, 1, None, *[0] * 1_000_000], pa.int32())
    pq.write_table(pa.table({"text": pa.DictionaryArray.from_arrays(numbers, once)}), tmp_path / "many.parquet")
    assert (tmp_path / "many.parquet").stat().st_size < 300_000
    assert read_prompts(str(tmp_path / "many.parquet")) == ["a" * 100_000, "red apple"]


def test_of_two_columns_of_one_name_neither_is_taken(tmp_path):
    (tmp_path / "x.csv").write_text("prompt,prompt\na,b\n")
    with pytest.raises(ConfigError, match=r"x.csv has 2 columns prompt; leave one"):
        read_prompts(str(tmp_path / "x.csv"))
