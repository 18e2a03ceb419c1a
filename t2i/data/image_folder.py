"""Folders of images, with the captions in metadata files or in text files next to them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from t2i.config import ConfigError
from t2i.data import metadata_files, split_folders
from t2i.data.caption_files import SUFFIXES as TEXTS
from t2i.data.caption_files import CaptionFiles
from t2i.data.datasets import CachedSettings, loader_of
from t2i.data.file_names import FileNames
from t2i.data.folder_files import Files, walk
from t2i.data.images import FOREIGN, SUFFIXES, unusable
from t2i.data.records import Found, Item
from t2i.data.scanned_files import scan

log = logging.getLogger(__name__)
_BAD = object()  # the caption of an image whose row can't be used


@dataclass(frozen=True, kw_only=True)
class Folder(CachedSettings):
    """Images in a folder and those below it. Held out is validation/, or else what hashes decide."""

    caption_column: str
    captions_per_line: bool = True  # run folders that were written before have neither of these
    split_folders: bool = False

    def find(self) -> Found:
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise ConfigError(f"dataset.path={self.path} is not a folder; for a data set of the Hub, use dataset=hub")
        found = find(root, self.caption_column, self.follow_links, self.caption, self.captions_per_line)
        if not self.split_folders:
            marked = [replace(item, for_validation=item.name.startswith("validation/")) for item in found.items]
            return Found(marked, found.unread)
        train, held_out, test = split_folders.divided(found.items)
        split_folders.tell(held_out, test)
        marked = [replace(item, for_validation=True) for item in held_out]
        return Found(train + marked, [*found.unread, *split_folders.left_out(test)])


folder = loader_of(Folder)


def find(
    root: Path,
    caption_column: str,
    follow_links: bool = False,
    caption: str | None = None,
    captions_per_line: bool = False,
) -> Found:
    """Every image below `root`, and everything that its metadata names; those that can't be used say why.

    follow_links: also read what links lead to outside `root`. caption: that of every image, instead of all others.
    Hidden files (.NAME) are ignored. A metadata file describes files in its own folder and below. An image IMAGE.jpg
    that is in none of them has its caption in IMAGE.txt. Other files are named in the log.
    """
    found = walk(root, follow_links)
    images = [name for name in found.stats if _suffix(name) in (*SUFFIXES, *FOREIGN)]
    texts = CaptionFiles(root, found, captions_per_line)
    listed, unusable_rows, unread = dict[str, object](), list[Item](), list[dict[str, str]]()
    sources = dict.fromkeys(images, "dataset.caption")
    if caption is None:
        metadata = _metadata(root, found)
        listed, unusable_rows, sources = _listed(root, metadata, found, caption_column)
        no_text = (
            "has no caption in a metadata file" if metadata else "has no caption: there is no .txt file next to it"
        )
        texts.describe([name for name in images if name not in listed], no_text)
        texts.tell()
        sources = {name: f"*{suffix}" for name, suffix in texts.suffixes.items()} | sources
        unread = _name_the_rest(root, found, {*images, *listed, *metadata, *texts.used})
    else:
        log.info(
            "dataset.caption: %r is the caption of all %d images; no other captions are read", caption, len(images)
        )
    captions = dict.fromkeys(images, caption) if caption is not None else listed | texts.captions
    captions = {name: text for name, text in captions.items() if name not in found.outside and text is not _BAD}
    facts = scan(root, {name: found.stats[name] for name in captions})
    usable = [
        Item(name, text, (root / name).read_bytes, facts[name], source=sources.get(name, ""))
        for name, text in captions.items()
    ]
    described = listed if caption is None else dict.fromkeys(images)
    outside = {name: problem for name, problem in found.outside.items() if name in described}
    broken = {name: problem for name, problem in found.broken.items() if _suffix(name) in SUFFIXES}
    rest = found.folders | outside | broken | texts.problems
    readable = {name: (root / name).read_bytes for name in texts.problems if name not in found.outside}
    others = [_unusable(name, problem, readable.get(name, bytes)) for name, problem in rest.items()]
    return Found(usable + unusable_rows + others, unread)


def _unusable(name: str, problem: str, content: Callable[[], bytes] = bytes) -> Item:
    """content: of an image that lacks nothing but a caption."""
    return Item(name, None, content, unusable(problem))


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _metadata(root: Path, files: Files) -> list[str]:
    """The metadata files, by relative path."""
    metadata = sorted(name for name in files.stats if name.rpartition("/")[2].lower() in metadata_files.NAMES)
    for listing in metadata:
        if listing in files.outside:
            raise ConfigError(f"dataset.path: {root / listing} {files.outside[listing]}")
    return metadata


def _listed(
    root: Path, metadata: Sequence[str], files: Files, caption_column: str
) -> tuple[dict[str, object], list[Item], dict[str, str]]:
    """The captions in the metadata files, by file; the rows that can't be used; and the file of each caption."""
    names = FileNames(root, files.stats)
    captions: dict[str, object] = {}
    bad, sources = [], dict[str, str]()
    for listing in metadata:
        for row, (file_name, caption, wrong_fields) in enumerate(metadata_files.rows(root / listing, caption_column)):
            name, problem = names.find(listing, file_name)
            if problem == "does not exist":
                problem = files.broken.get(name, problem)
            elif name in captions:
                problem = "is listed twice; give several captions as a list in one row"
            if wrong_fields and not problem:
                problem, captions[name] = wrong_fields, _BAD
            if problem:
                bad.append(_unusable(f"{file_name} ({listing}, row {row})", problem))
            else:
                captions[name], sources[name] = caption, listing
    return captions, bad, sources


def _name_the_rest(root: Path, files: Files, used: set[str]) -> list[dict[str, str]]:
    """Say which files are neither an image nor belong to one."""
    others = [name for name in (*files.stats, *files.broken, *files.special) if name not in used]
    texts = [name for name in others if _suffix(name) in TEXTS]
    others = [name for name in others if name not in texts and _suffix(name) not in SUFFIXES]
    for what, names in (("caption files have no image", texts), ("other files are not read", others)):
        if names:
            log.warning("%s: %d %s, such as %s", root, len(names), what, ", ".join(names[:3]))
    unread = [{"item": name, "reason": "is a caption file without an image"} for name in texts]
    return unread + [{"item": name, "reason": "is no image, and belongs to none"} for name in others]
