import io
import json
import tarfile

import pytest
from helpers import packing
from helpers.image_folders import content

from t2i.data.images import Facts
from t2i.data.records import Item
from t2i.data.shards import BadShard, Columns, Rows, Tar

TXT, FIELD = Columns("image", "txt"), Columns("image", "text")


def found(file, columns=TXT):
    with file.open("rb") as opened:
        return list((Rows if file.suffix == ".parquet" else Tar)(opened, columns))


@pytest.mark.parametrize("form", ["txt", "json", "parquet"])
def test_every_form_holds_the_same_images_and_captions(form, tmp_path):
    numbers = range(8)
    if form == "parquet":
        file = packing.write_parquet(tmp_path / "a.parquet", numbers)
    else:
        members = {"txt": packing.as_txt, "json": packing.as_json}[form](numbers)
        file = packing.write_tar(tmp_path / "a.tar", members)
    items = found(file, TXT if form == "txt" else FIELD)
    assert [(each.content, each.caption) for each in items] == [(packing.image(i), f"image {i}") for i in numbers]
    assert not any(each.problem for each in items)
    with file.open("rb") as opened:
        reader = (Rows if form == "parquet" else Tar)(opened, FIELD)
        assert reader.contents([items[i].where for i in (5, 0, 5)]) == [packing.image(i) for i in (5, 0, 5)]


def test_names_are_split_at_the_first_dot_of_the_last_part(tmp_path):
    """As WebDataset does; the files of an item need not be next to each other."""
    members = {"a.b/1.png": packing.image(1), "a.b/1.seg.png": b"", "2.JPG": packing.image(2)}
    members |= {"2.txt": b"two", "a.b/1.txt": "\ufeffone ".encode()}
    items = found(packing.write_tar(tmp_path / "a.tar", members))
    assert [(each.name, each.caption, each.problem) for each in items] == [("a.b/1", "one", ""), ("2", "two", "")]


def test_what_an_item_lacks_is_named(tmp_path):
    png = packing.image(0)
    members = {"1.png": png, "2.txt": b"two", "3.png": png, "3.jpg": png, "3.txt": b"three", "4.png": png}
    members |= {"4.txt": b"\xff\xfe\x00"}
    one, two, three, four = found(packing.write_tar(tmp_path / "a.tar", members))
    assert one.problem == "has no caption: there is no 1.txt next to it (see dataset.caption_column)"
    assert two.problem == "has no image (2.txt)"
    assert three.problem == "has several images (3.png, 3.jpg, 3.txt)"
    assert four.problem.startswith("has no caption: 4.txt can't be used")
    members = {"1.png": png, "1.json": b"{", "2.png": png, "2.json": json.dumps({"caption": "two"}).encode()}
    one, two = found(packing.write_tar(tmp_path / "b.tar", members), FIELD)
    assert one.problem.startswith("has no caption: 1.json can't be used")
    assert two.problem == "has no caption: 2.json can't be used (it has no field 'text')"


def test_a_tar_file_that_is_cut_anywhere_is_no_shorter_tar_file(tmp_path):
    file = packing.write_tar(tmp_path / "a.tar", packing.as_txt(range(4)))
    whole, used = file.read_bytes(), len(file.read_bytes().rstrip(b"\0"))
    used += -used % 512
    for length in range(0, used + 1, 256):
        file.write_bytes(whole[:length])
        with pytest.raises(BadShard, match=r"is not a complete tar file|is truncated or damaged after"):
            found(file)
    file.write_bytes(whole[: used + 512])
    assert len(found(file)) == 4
    file.write_bytes(whole[:2048] + b"x" * 512 + whole[2560:])
    with pytest.raises(BadShard):
        found(file)


def test_no_name_in_a_tar_file_becomes_a_path(tmp_path):
    """No file is written or read under such a name, and a link contains no image."""
    (tmp_path / "outside.png").write_bytes(packing.image(0))
    members = {"../outside.png": packing.image(1), "../outside.txt": b"one", "2.txt": b"two"}
    file = packing.write_tar(tmp_path / "shards" / "a.tar", members)
    with tarfile.open(file, "a") as tar:
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "outside.png")
        tar.addfile(link)
    one, two = found(file)
    assert (one.content, one.caption, one.problem) == (packing.image(1), "one", "")
    assert two.problem == "has no image (2.txt)"
    assert (tmp_path / "outside.png").read_bytes() == packing.image(0)
    assert list((tmp_path / "shards").iterdir()) == [file]


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.map": "0,10", "GNU.sparse.size": str(10**13)},  # ten terabytes of nothing
        {"GNU.sparse.map": "x,y", "GNU.sparse.size": "5"},
        {"size": "-5"},
    ],
)
def test_headers_that_no_packer_writes_are_refused(headers, tmp_path):
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in {"1.png": packing.image(1), "1.txt": b"one", "2.txt": b"two"}.items():
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(content), headers if name == "1.png" else {}
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(BadShard, match=r"sparse file 1\.png|not a complete tar file|truncated or damaged"):
        found(file)


def test_a_caption_that_is_nested_too_deeply_is_no_caption(tmp_path):
    members = {"1.png": packing.image(1), "1.json": b"[" * 200_000}
    (item,) = found(packing.write_tar(tmp_path / "a.tar", members), FIELD)
    assert "has no caption: 1.json can't be used" in item.problem


def test_unusable_parquet_files(tmp_path):
    file = packing.write_parquet(tmp_path / "a.parquet", range(4))
    with pytest.raises(BadShard, match=r"no column png \(dataset.image_column\); its columns are image, text"):
        found(file, Columns("png", "text"))
    with pytest.raises(BadShard, match=r"no column caption \(dataset.caption_column\)"):
        found(file, Columns("image", "caption"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadShard, match="is not a complete Parquet file"):
        found(file, FIELD)
    with pytest.raises(BadShard):
        Rows(io.BytesIO(b""), FIELD)


def test_names_and_folders_may_have_dots(tmp_path):
    """WebDataset's own names end at the first dot, as in a.seg.png; where that leaves no image, at the last."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("v1.0/0.05.png", "v1.0/0.05.txt", "v1.0/0.10.PNG", "v1.0/0.10.txt", "a.png", "a.seg.png", "a.txt"):
            member = tarfile.TarInfo(name)
            data = name.encode() if name.endswith("txt") else content(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with (tmp_path / "a.tar").open("rb") as file:
        found = {item.name: item.problem or item.caption for item in Tar(file, Columns("image", "txt"))}
    assert found == {"v1.0/0.05": "v1.0/0.05.txt", "v1.0/0.10": "v1.0/0.10.txt", "a": "a.txt"}


def test_a_caption_that_a_tokenizer_would_take_minutes_for_is_left_out():
    item = Item("shard 0: 1", ["a" * 600_000, "b" * 600_000], bytes, Facts("", 1, 1, ""))
    assert item.problem == "has a caption of 1200000 characters; it may have 1000000"
