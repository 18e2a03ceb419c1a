"""Write openmoji.csv, the emoji list of `t2i.data.openmoji`: `python -m t2i.tiny.catalogue`; needs package emoji."""

import csv
import dataclasses
import hashlib

from emoji import EMOJI_DATA, STATUS
from PIL import Image

from t2i.data.openmoji import CATALOGUE, FRAME, Emoji, _font, draw

HELD_OUT = 0.06
SALT = "openmoji"
TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}

# Ranges of first code points. An emoji is in the first group that fits; if none fits, it is an object.
GROUPS = {
    "flags": "1F1E6-1F1FF 1F38C 1F3C1 1F3F3-1F3F4 1F6A9",
    "people": "1F440-1F445 1F464-1F46F 1F5E3 1F93A 1F9B0-1F9B9 1F9CC 1F9CD-1F9CF 1F9D1-1F9E0 1FAC0-1FAC2 1FAC8 26F7",
    "hearts": "1F493-1F49F 1F5A4 1F90D-1F90E 1F9E1 1FA75-1FA77 2665 2763-2764",
    "faces": "1F479-1F480 1F4A9 1F600-1F637 1F641-1F644 1F910-1F917 1F920-1F92F 1F970-1F97A 1F9D0 "
    "1FAE0-1FAE5 1FAE8-1FAEB 2639-263A",
    "animal_faces": "1F42D-1F432 1F434-1F43C 1F981 1F984 1F98A 1F99D",
    "fruit": "1F345-1F353 1F95D 1F965 1F96D 1FAD0",
    "animals": "1F400-1F43F 1F54A 1F577-1F578 1F638-1F640 1F648-1F64A 1F980-1F9AE 1FAB0-1FAB3 1FAB6 1FAB8 "
    "1FABC-1FABD 1FABF 1FACC-1FACF",
    "food": "1F32D-1F330 1F336 1F33D 1F344-1F37F 1F382 1F942-1F944 1F950-1F96F 1F9C0-1F9CB 1FAD0-1FADD 2615",
    "nature": "1F300-1F302 1F308 1F30A-1F343 1F384 1F38B 1F38D 1F490 1F4A6-1F4A8 1F4AB 1F525 1F940 1FA90 1FAA8 "
    "1FAB4-1FABB 1FABE 2600-2604 2614 2618 26A1 26C4-26C8 2728 2744 2B50",
    "travel": "1F303-1F309 1F3A0-1F3A2 1F3AA 1F3CD-1F3CE 1F3D4-1F3F0 1F54B-1F54D 1F5FA-1F5FF 1F680-1F6AA 1F6B2 "
    "1F6CB-1F6CF 1F6D5-1F6D9 1F6DD-1F6DF 1F6E3-1F6FC 26E9-26F2 26F4-26F5 26FA-26FD 2693 2708",
    "activities": "1F380-1F3D3 1F3F8-1F3F9 1F579 1F52B 1F93F 1F941 1F945-1F94F 1F9E8-1F9E9 1F9F8 1FA80-1FA89 "
    "1FA95-1FA98 1FAA9 26BD-26BE 26F3 26F8 265F 1F004 1F0CF",
    "symbols": "23-39 A9-2199 21A9-21AA 23CF-23EF 23F8-2602 2605 2611-2691 2695 269B-269C 26A0-26AB 26CE 26D4 2705 "
    "2714-2757 2795-2B1C 2B55-3299 1F170-1F251 1F3E7 1F4A0 1F4A2 1F4A4-1F4A5 1F4AC-1F4AF 1F4B1-1F4B2 "
    "1F4F2-1F4F6 1F500-1F50A 1F515 1F517-1F524 1F52F-1F549 1F54E-1F567 1F5E8-1F5EF 1F6AB 1F6AD-1F6BC "
    "1F6BE 1F6C2-1F6D1 1F6DC 1F7E0-1F7F0 1FAAF",
}
WITH_ARTICLE = {"Bahamas", "Comoros", "Gambia", "Isle of Man", "Maldives", "Netherlands", "Philippines", "Seychelles"}


def group_of(emoji: str, with_tones: set[str]) -> str:
    if TONES & set(emoji):
        return "people_tones"
    if emoji[0] in with_tones:
        return "people"
    for group, ranges in GROUPS.items():
        for text in ranges.split():
            first, _, last = text.partition("-")
            if int(first, 16) <= ord(emoji[0]) <= int(last or first, 16):
                return group
    return "objects"


def caption_of(emoji: str) -> str:
    name = EMOJI_DATA[emoji]["en"].strip(":").replace("_", " ").replace("’", "'").replace("&", "and")
    name = " ".join(name.translate({ord(sign): None for sign in '.!,:"“”()'}).replace(" - ", " ").split())
    if 0x1F1E6 <= ord(emoji[0]) <= 0x1F1FF or "\U000e007f" in emoji:  # countries; England, Scotland and Wales
        article = name in WITH_ARTICLE or name.endswith((" Islands", "Republic", "Union", "Territory", "Emirates"))
        name = "flag of " + ("the " if article or name.startswith("United ") else "") + name
    return name


def split_of(image: Image.Image) -> str:
    """By a hash of the pixels: two names of one image stay together, and no emoji moves when others are added."""
    position = int(hashlib.sha256(SALT.encode() + image.tobytes()).hexdigest(), 16) / 16**64
    return "validation" if position < HELD_OUT else "train"


def main() -> None:
    emoji = [emoji for emoji, data in EMOJI_DATA.items() if data["status"] == STATUS["fully_qualified"]]
    with_tones = {one[0] for one in emoji if TONES & set(one)}
    font = _font(100)
    by_image: dict[bytes, list[Emoji]] = {}
    for one in emoji:
        too_wide = font.getlength(one) > 100 * FRAME * 1.2  # the font lacks this sequence
        if too_wide or len(TONES & set(one)) > 1:
            continue
        image = draw(one, 64)
        if image.getextrema() == ((255, 255),) * 3:
            continue
        entry = Emoji(one, caption_of(one), group_of(one, with_tones), split_of(image))
        by_image.setdefault(image.tobytes(), []).append(entry)
    # Among emoji with the same image, the one with the shortest name is kept: France, not Clipperton Island.
    kept = [min(same, key=lambda one: (len(one.caption), one.caption)) for same in by_image.values()]
    with CATALOGUE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(Emoji))
        writer.writerows(dataclasses.astuple(one) for one in sorted(kept, key=lambda one: (one.group, one.emoji)))
    print(f"{len(kept)} images, {sum(one.split == 'validation' for one in kept)} of them held out")


if __name__ == "__main__":
    main()
