"""Folders of images, with the captions in metadata files or in text files next to them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from t2i.config import ConfigError
from t2i.data import metadata_files, split_folders
from t2i.data.caption_files import SUFFIXES as TEXTS
from t2i.data.caption_files import CaptionFiles
from t2i.data.datasets import CachedSettings, loader_of
from t2i.data.file_names import FileNames
from t2i.data.folder_files import Files, walk
from t2i.data.images import FOREIGN, SUFFIXES, unusable
from t2i.data.masks import MaskFiles
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
        if self.loss_weight_column is not None and self.caption is not None:
            raise ConfigError(
                f"dataset.loss_weight_column={self.loss_weight_column} is in the metadata, which are not read with "
                "dataset.caption; set one of them to null"
            )
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise ConfigError(f"dataset.path={self.path} is not a folder; for a data set of the Hub, use dataset=hub")
        found = find(
            root,
            self.caption_column,
            self.follow_links,
            self.caption,
            self.captions_per_line,
            self.masks,
            self.loss_weight_column,
        )
        if not self.split_folders:
            marked = [replace(item, for_validation=item.name.startswith("validation/")) for item in found.items]
            return Found(marked, found.unread)
        train, held_out, test = split_folders.divided(found.items)
        split_folders.tell(held_out, test)
        marked = [replace(item, for_validation=True) for item in held_out]
        return Found(train + marked, [*found.unread, *split_folders.left_out(test)])


folder = loader_of(Folder)


@dataclass
class Described:
    """What metadata and text files say of images, by relative path. problems: of those that can't be used."""

    captions: dict[str, object] = field(default_factory=dict)
    loss_weights: dict[str, object] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)  # where each caption comes from
    unread: list[dict[str, str]] = field(default_factory=list)  # other files: `item` and `reason`


def find(
    root: Path,
    caption_column: str,
    follow_links: bool = False,
    caption: str | None = None,
    captions_per_line: bool = False,
    masks: str | None = None,
    loss_weight_column: str | None = None,
) -> Found:
    """Every image below `root`, and everything that its metadata names; those that can't be used say why.

    follow_links: also read what links lead to outside `root`. caption: that of every image, instead of all others.
    Hidden files (.NAME) are ignored. A metadata file describes files in its own folder and below. An image IMAGE.jpg
    that is in none of them has its caption in IMAGE.txt. Other files are named in the log.
    """
    files = walk(root, follow_links)
    mask_files = MaskFiles(root, files, masks, follow_links)
    images = mask_files.without(name for name in files.stats if _suffix(name) in (*SUFFIXES, *FOREIGN))
    if caption is None:
        columns = caption_column, loss_weight_column
        described = _described(root, files, images, columns, captions_per_line, mask_files)
    else:
        described = _with_caption(files, images, caption, mask_files)
    facts = scan(root, {name: files.stats[name] for name in (*described.captions, *mask_files.among())})
    masked = {name: mask_files.of(name, facts) for name in described.captions}
    mask_files.tell([mask for mask, _ in masked.values()])
    problems = described.problems | {name: problem for name, (_, problem) in masked.items() if problem}
    usable = [
        Item(
            name,
            text,
            (root / name).read_bytes,
            facts[name],
            mask=masked[name][0],
            loss_weight=described.loss_weights.get(name, 1.0),
            caption_source=described.sources.get(name, "dataset.caption"),
        )
        for name, text in described.captions.items()
        if name not in problems
    ]
    broken = {name: problem for name, problem in files.broken.items() if _suffix(name) in SUFFIXES}
    rest = files.folders | broken | problems
    readable = {name for name in problems if name in files.stats and name not in files.outside}
    contents = {name: (root / name).read_bytes if name in readable else bytes for name in rest}
    others = [Item(name, None, contents[name], unusable(problem)) for name, problem in rest.items()]
    return Found(usable + others, described.unread)


def _with_caption(files: Files, images: Sequence[str], caption: str, masks: MaskFiles) -> Described:
    """One caption for all images."""
    log.info("dataset.caption: %r is the caption of all %d images; no other captions are read", caption, len(images))
    problems = {name: hint for name in images if (hint := masks.hint(name))}
    problems |= {name: problem for name, problem in files.outside.items() if name in images}
    return Described({name: caption for name in images if name not in problems}, problems=problems)


def _described(
    root: Path,
    files: Files,
    images: Sequence[str],
    columns: tuple[str, str | None],
    captions_per_line: bool,
    masks: MaskFiles,
) -> Described:
    """The captions of images in metadata and text files. columns: of captions and of loss weights."""
    metadata = _metadata(root, files)
    if columns[1] is not None and not metadata:
        raise ConfigError(f"dataset.loss_weight_column={columns[1]}: {root} has no metadata file; use null")
    listed = _listed(root, metadata, files, columns)
    texts = CaptionFiles(root, files, captions_per_line)
    no_text = "has no caption in a metadata file" if metadata else "has no caption: there is no .txt file next to it"
    texts.describe([name for name in images if name not in listed.captions], no_text)
    texts.tell()
    unread = _name_the_rest(root, files, {*images, *listed.captions, *metadata, *texts.used, *masks.beside})
    hints = {name: hint for name in texts.problems if (hint := masks.hint(name))}
    outside = {name: problem for name, problem in files.outside.items() if name in listed.captions}
    problems = listed.problems | outside | texts.problems | hints
    captions = listed.captions | texts.captions
    usable = {name: text for name, text in captions.items() if name not in problems and text is not _BAD}
    sources = {name: f"*{suffix}" for name, suffix in texts.suffixes.items()} | listed.sources
    return Described(usable, listed.loss_weights, problems, sources, unread)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _metadata(root: Path, files: Files) -> list[str]:
    """The metadata files, by relative path."""
    metadata = sorted(name for name in files.stats if name.rpartition("/")[2].lower() in metadata_files.NAMES)
    for listing in metadata:
        if listing in files.outside:
            raise ConfigError(f"dataset.path: {root / listing} {files.outside[listing]}")
    return metadata


def _listed(root: Path, metadata: Sequence[str], files: Files, columns: tuple[str, str | None]) -> Described:
    """What the metadata files say. Rows that can't be used are among the problems, by what they name."""
    names, found = FileNames(root, files.stats), Described()
    for listing in metadata:
        for number, row in enumerate(metadata_files.rows(root / listing, *columns)):
            name, problem = names.find(listing, row.file_name)
            if problem == "does not exist":
                problem = files.broken.get(name, problem)
            elif name in found.captions:
                problem = "is listed twice; give several captions as a list in one row"
            if row.problem and not problem:
                problem, found.captions[name] = row.problem, _BAD
            if problem:
                found.problems[f"{row.file_name} ({listing}, row {number})"] = problem
            else:
                found.captions[name], found.loss_weights[name] = row.caption, row.loss_weight
                found.sources[name] = listing
    return found


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
