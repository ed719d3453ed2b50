"""Which words of a caption name a category of COCO: the table, and finding them.

The table is ours. It has what people call the things that COCO's annotators mark as a category, in the
singular; plurals are found too. Left out are words that too often mean something else, such as "board",
"light", "glove" or the "couple" in "a couple of dogs".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

NAMES: dict[str, tuple[str, ...]] = {
    "person": (
        *("person", "people", "man", "woman", "boy", "girl", "child", "kid", "baby", "toddler", "infant"),
        *("lady", "guy", "gentleman", "teenager", "teen", "youth", "bride", "groom", "crowd"),
        *("player", "rider", "skateboarder", "skater", "surfer", "skier", "snowboarder", "swimmer", "runner"),
        *("cyclist", "bicyclist", "biker", "motorcyclist", "climber", "hiker", "jogger", "dancer", "singer"),
        *("batter", "pitcher", "catcher", "umpire", "referee", "athlete", "worker", "officer", "policeman"),
        *("fireman", "soldier", "cowboy", "fisherman", "student", "wakeboarder"),
    ),
    "bicycle": ("bicycle", "bike"),
    "car": ("car", "suv", "taxi", "cab", "minivan"),
    "motorcycle": ("motorcycle", "motorbike", "scooter", "moped", "dirt bike"),
    "airplane": ("airplane", "aeroplane", "plane", "jet", "airliner"),
    "bus": ("bus",),
    "train": ("train", "locomotive"),
    "truck": ("truck", "pickup"),
    "boat": ("boat", "ship", "canoe", "kayak", "sailboat", "raft", "ferry"),
    "traffic light": ("traffic light", "stoplight", "traffic signal"),
    "fire hydrant": ("fire hydrant", "hydrant"),
    "stop sign": ("stop sign",),
    "parking meter": ("parking meter",),
    "bench": ("bench",),
    "bird": ("bird", "seagull", "gull", "duck", "goose", "pigeon", "parrot", "owl", "eagle", "swan"),
    "cat": ("cat", "kitten", "kitty"),
    "dog": ("dog", "puppy", "poodle", "greyhound", "retriever", "terrier"),
    "horse": ("horse", "pony", "bronco"),
    "sheep": ("sheep", "lamb"),
    "cow": ("cow", "cattle", "calf", "bull"),
    "elephant": ("elephant",),
    "bear": ("bear",),
    "zebra": ("zebra",),
    "giraffe": ("giraffe",),
    "backpack": ("backpack",),
    "umbrella": ("umbrella", "parasol"),
    "handbag": ("handbag", "purse"),
    "tie": ("tie", "necktie"),
    "suitcase": ("suitcase", "luggage"),
    "frisbee": ("frisbee",),
    "skis": ("ski", "skis"),
    "snowboard": ("snowboard",),
    "sports ball": ("ball", "soccer ball", "tennis ball"),  # "baseball" is mostly the game
    "kite": ("kite",),
    "baseball bat": ("bat", "baseball bat"),
    "baseball glove": ("baseball glove", "mitt"),
    "skateboard": ("skateboard",),
    "surfboard": ("surfboard", "surf board"),
    "tennis racket": ("racket", "racquet", "tennis racket", "tennis racquet"),
    "bottle": ("bottle",),
    "wine glass": ("wine glass",),
    "cup": ("cup", "mug"),
    "fork": ("fork",),
    "knife": ("knife",),
    "spoon": ("spoon",),
    "bowl": ("bowl",),
    "banana": ("banana",),
    "apple": ("apple",),
    "sandwich": ("sandwich", "burger", "hamburger"),
    "orange": (),  # nearly always the colour
    "broccoli": ("broccoli",),
    "carrot": ("carrot",),
    "hot dog": ("hot dog", "hotdog"),
    "pizza": ("pizza",),
    "donut": ("donut", "doughnut"),
    "cake": ("cake", "cupcake"),
    "chair": ("chair",),
    "couch": ("couch", "sofa"),
    "potted plant": ("potted plant", "houseplant"),
    "bed": ("bed",),
    "dining table": ("table", "dining table"),
    "toilet": ("toilet",),
    "tv": ("tv", "television"),
    "laptop": ("laptop",),
    "mouse": ("mouse",),
    "remote": ("remote", "remote control"),
    "keyboard": ("keyboard",),
    "cell phone": ("phone", "cellphone", "cell phone", "telephone"),
    "microwave": ("microwave",),
    "oven": ("oven", "stove"),
    "toaster": ("toaster",),
    "sink": ("sink",),
    "refrigerator": ("refrigerator", "fridge"),
    "book": ("book",),
    "clock": ("clock",),
    "vase": ("vase",),
    "scissors": ("scissors",),
    "teddy bear": ("teddy bear", "teddy", "stuffed bear"),
    "hair drier": ("hair drier", "hair dryer", "hairdryer"),
    "toothbrush": ("toothbrush",),
}
"""Words by category; of several words only the last takes the plural. The categories are those of
Lin et al. 2014, "Microsoft COCO: Common Objects in Context"."""

NO_NAMES = (
    *("jet ski", "ski lift", "ski slope", "ski pole", "ski resort", "ski jump", "bus stop", "bus station"),
    *("train station", "train track", "bike path", "bike lane", "bike rack", "dog house", "horse race"),
    *("car seat", "boat dock", "phone booth", "book shelf", "table tennis", "bear costume"),
)
"""Phrases that hold such a word and name no such thing."""

# What "name + s" would get wrong.
_PLURALS = {
    "person": "persons",
    "man": "men",
    "woman": "women",
    "child": "children",
    "gentleman": "gentlemen",
    "policeman": "policemen",
    "fireman": "firemen",
    "fisherman": "fishermen",
    "goose": "geese",
    "calf": "calves",
    "knife": "knives",
    "mouse": "mice",
}
_MAX_WORDS = 2


@dataclass(frozen=True)
class Mention:
    """Words of a caption, from place `start` up to `stop`, that name a category."""

    category: str
    start: int
    stop: int


def mentions(words: Sequence[str]) -> Iterator[Mention]:
    """Where a caption names a category. Of names within names the longest counts: "hot dog" is no dog."""
    start = 0
    while start < len(words):
        for stop in range(min(start + _MAX_WORDS, len(words)), start, -1):
            form = " ".join(words[start:stop])
            if form in _category_of():
                category = _category_of()[form]
                if category is not None:
                    yield Mention(category, start, stop)
                start = stop
                break
        else:
            start += 1


@lru_cache(maxsize=1)
def _category_of() -> dict[str, str | None]:
    """The category of every form of every name; None for phrases that name nothing."""
    category_of: dict[str, str | None] = {
        form: category for category, names in NAMES.items() for name in names for form in _forms(name)
    }
    return category_of | {form: None for name in NO_NAMES for form in _forms(name)}


def _forms(name: str) -> tuple[str, str]:
    return name, _plural(name)


def _plural(name: str) -> str:
    if name in _PLURALS:
        return _PLURALS[name]
    if name.endswith(("s", "sh", "ch", "x")):
        return f"{name}es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"
