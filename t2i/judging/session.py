"""The votes of all judges of a contest: what each sees next, and what the page may know of it."""

import hashlib
import hmac
import logging
import secrets
from io import BytesIO
from typing import Any

from PIL import Image

from t2i.config import ConfigError
from t2i.judging.contestants import Contest, Contestant
from t2i.judging.schedule import Pair, schedule
from t2i.runs.judgements import Judgements, Vote, now
from t2i.runs.text import one_line, printable

log = logging.getLogger(__name__)

AHEAD = 3  # pairs that the page gets, so that it can load their images before they are shown
LONGEST_NAME = 60  # characters


class Session:
    """A contest with its file of votes. Several threads may use it."""

    def __init__(self, contest: Contest, judgements: Judgements, seed: int, count: int):
        self.contest, self.judgements, self.seed, self.count = contest, judgements, seed, count
        self.key = secrets.token_bytes(32)
        self.schedules: dict[str, list[Pair]] = {}
        self.readable: dict[str, bool] = {}  # by the ids of pairs; those that were looked at
        self.images: dict[str, tuple[Contestant, int, int]] = {}  # by the opaque names that the page has seen

    def state(self, judge: str) -> dict[str, Any]:
        """What the page shows: the next pairs, how many are judged, and how many there are."""
        votes = self._votes(judge)
        done = sum(pair.id in votes for pair in self._schedule(judge))
        following = [pair for pair in self._schedule(judge) if pair.id not in votes]
        while unreadable := [pair for pair in following[:AHEAD] if not self._is_readable(pair)]:
            following = [pair for pair in following if pair not in unreadable]
        following = [pair for pair in following if self.readable.get(pair.id, True)]
        return {
            "judge": judge,
            "done": done,
            "total": done + len(following),
            "pairs": [self._public(pair) for pair in following[:AHEAD]],
        }

    def vote(self, judge: str, identity: str, choice: str) -> dict[str, Any]:
        """Record a choice; the state after it. The first choice of a judge on a pair counts, however often it comes."""
        pair = next((pair for pair in self._schedule(judge) if pair.id == identity), None)
        if pair is None:
            raise ConfigError("this pair is not one of this session; reload the page")
        left, right = (side.shown(pair.prompt, pair.seed, self.judgements.folder) for side in (pair.left, pair.right))
        vote = Vote(
            id=pair.id,
            judge=judge,
            time=now(),
            battery=self.contest.battery,
            prompt=pair.prompt,
            text=self.contest.prompts[pair.prompt],
            seed=pair.seed,
            left=left,
            right=right,
            choice=choice,
            repeats=pair.repeats,
        )
        self.judgements.add(vote)
        return self.state(judge)

    def undo(self, judge: str) -> dict[str, Any]:
        """Take back the judge's last vote of this contest; the state after it."""
        mine = self._votes(judge)
        if judged := [pair.id for pair in self._schedule(judge) if pair.id in mine]:
            order = list(mine)
            self.judgements.take_back(judge, max(judged, key=order.index))
        return self.state(judge)

    def png(self, name: str) -> bytes | None:
        """The pixels of an image by its opaque name, without anything else that its file says."""
        if name not in self.images:
            return None
        pixels = _pixels(*self.images[name])
        pixels.save(file := BytesIO(), format="PNG", compress_level=1)
        return file.getvalue()

    def _schedule(self, judge: str) -> list[Pair]:
        if judge not in self.schedules:
            below = self.judgements.folder
            self.schedules[judge] = schedule(self.contest, below, judge, self.seed, self.count)
        return self.schedules[judge]

    def _votes(self, judge: str) -> dict[str, Vote]:
        """The judge's votes by the ids of their pairs, in the order in which they were cast."""
        return {identity: vote for (name, identity), vote in self.judgements.read()[0].items() if name == judge}

    def _is_readable(self, pair: Pair) -> bool:
        """Whether both images can be decoded; a pair with one that can't is left out, with a warning."""
        if pair.id not in self.readable:
            try:
                for side in (pair.left, pair.right):
                    _pixels(side, pair.prompt, pair.seed)
                self.readable[pair.id] = True
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                log.warning("An image can't be read, and its pair is left out: %s", one_line(error))
                self.readable[pair.id] = False
        return self.readable[pair.id]

    def _public(self, pair: Pair) -> dict[str, str]:
        return {
            "id": pair.id,
            "prompt": printable(self.contest.prompts[pair.prompt]),
            "left": self._image(pair, pair.left),
            "right": self._image(pair, pair.right),
        }

    def _image(self, pair: Pair, side: Contestant) -> str:
        """A name that tells nothing, and that is another one in each pair."""
        where = f"{pair.id} {side is pair.left}"
        name = hmac.new(self.key, where.encode(), hashlib.sha256).hexdigest()[:32]
        self.images[name] = (side, pair.prompt, pair.seed)
        return name


def _pixels(contestant: Contestant, prompt: int, seed: int) -> Image.Image:
    with Image.open(contestant.images.file(prompt, seed), formats=["PNG"]) as image:
        pixels = image.convert("RGB")
    pixels.info.clear()
    return pixels


def judge_name(text: str) -> str:
    """The name of a judge as it is kept. Raises ConfigError for one that is empty or too long."""
    name = " ".join(printable(text).split())
    if not 0 < len(name) <= LONGEST_NAME:
        raise ConfigError(f"a judge's name has 1 to {LONGEST_NAME} characters")
    return name
