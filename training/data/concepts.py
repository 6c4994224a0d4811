"""Which class names mean the same, and which names of other sets are certainly absent from a set's photos.

A photo of one data set is asked with names of others too, as negatives in training and as distractors in evaluation.
That is honest only where the other name cannot be in the photo without being annotated: "zebra" on a building front,
but not "window" on a street photo. This is a declared table, made by looking at the photos of the eight sets of the
data folder and at what each set annotates. What always holds: a name is called a possible negative only when this table
says so; a name or a set that is not in it yields none.

How it is declared: every data set has a *domain* (`DOMAINS`), every name a canonical concept (`CONCEPTS`), and every
concept is in one `Group`, which lists the domains where it may turn up *unannotated*. Things that a photographer of the
domain would not notice in the background (a bottle in a fashion photo, jeans beside an industrial part) count as
"may turn up"; so do parts (hair of a person, window of a building) and materials.

Facts that are easy to miss: atwork photos show more than a table (hands, jeans, shoes, jackets, floors, walls, and
unannotated aluminium profiles in the frame behind it); the plants of cwfid are carrots and weeds; facade leaves sky,
doors and people void; ccp photos are taken in streets, with cars, bicycles and passers-by; some msrc photos are indoors
(cats on sofas, faces in offices, books).
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

STREET, FASHION, EVERYDAY, OUTDOOR = "street", "fashion photo", "everyday photo", "mostly outdoor photo"
FRONT, WORKSHOP, FIELD = "building front", "part in a workshop", "field from above"

DOMAINS: dict[str, str] = {
    "camvid": STREET,
    "ccp": FASHION,
    "coco_panoptic": EVERYDAY,
    "coco_things": EVERYDAY,
    "msrc": OUTDOOR,
    "facade": FRONT,
    "atwork": WORKSHOP,
    "cwfid": FIELD,
}


@dataclass(frozen=True)
class Group:
    """Concepts that may turn up unannotated in the same domains."""

    may_turn_up: frozenset[str]
    concepts: tuple[str, ...]


def _group(domains: Iterable[str], concepts: str) -> Group:
    return Group(frozenset(domains), tuple(concept.strip() for concept in concepts.split(",")))


_TOWN = (STREET, FASHION, EVERYDAY, OUTDOOR, FRONT)
_PEOPLE_ARE = (*_TOWN, WORKSHOP)

GROUPS: tuple[Group, ...] = (
    # People, what they wear and carry.
    _group(_PEOPLE_ARE, "person, face, body, hair, skin, bicyclist"),
    _group(
        _PEOPLE_ARE,
        "clothing accessories, belt, blazer, blouse, bodysuit, boots, bra, bracelet, cape, cardigan, clogs, coat,"
        "dress, earrings, flats, glasses, gloves, hat, heels, hoodie, intimate, jacket, jeans, jumper, leggings,"
        "loafers, necklace, panties, pants, pumps, ring, romper, sandals, scarf, shirt, shoes, shorts, skirt,"
        "sneakers, socks, stockings, suit, sunglasses, sweater, sweatshirt, swimwear, t-shirt, tie, tights, top,"
        "vest, watch, wedges",
    ),
    _group(_PEOPLE_ARE, "bag, purse, wallet, backpack, cell phone, bottle, cup, book"),
    _group(_TOWN, "umbrella, suitcase"),
    # Traffic and what stands in streets.
    _group(_TOWN, "car, bus, truck, bicycle, motorcycle"),
    _group(_TOWN, "traffic sign, stop sign, traffic light, parking meter, fire hydrant, banner"),
    _group(_TOWN, "traffic infrastructure, non building infrastructure, bridge, road, pavement, fence, balcony fence"),
    _group((FASHION, EVERYDAY, OUTDOOR), "train, boat, railroad, platform"),
    _group((EVERYDAY, OUTDOOR), "airplane"),
    # Buildings, surfaces, furniture.
    _group(_TOWN, "building, house, facade, shop, roof, stairs, brick wall, stone wall, wooden wall"),
    _group(_PEOPLE_ARE, "window, window blind, door, wall, light, tiled wall, paper, cardboard, sign, pole, bench"),
    _group(_PEOPLE_ARE, "chair, table, cabinet, mirror, curtain, net, clock"),
    _group((FASHION, EVERYDAY, OUTDOOR, FRONT, WORKSHOP), "floor, ceiling, rug, blanket, towel"),  # seen on balconies
    _group((FASHION, EVERYDAY, OUTDOOR, WORKSHOP), "wooden floor, shelf, counter"),
    _group((FASHION, EVERYDAY, OUTDOOR), "couch, bed, pillow"),
    _group((FASHION, EVERYDAY, OUTDOOR, FRONT), "dining table, tent, vase"),
    # Land.
    _group(_TOWN, "sky, tree, water, potted plant"),
    _group((*_TOWN, FIELD), "vegetation, weed, grass, flower, gravel, rock"),
    _group((*_TOWN, WORKSHOP, FIELD), "dirt"),
    _group((FASHION, EVERYDAY, OUTDOOR, FRONT), "mountain, snow"),
    _group((STREET, FASHION, EVERYDAY, OUTDOOR), "playing field"),
    _group((FASHION, EVERYDAY, OUTDOOR), "sea, river"),
    _group((FASHION, EVERYDAY, OUTDOOR, FIELD), "sand, crop"),
    # Animals.
    _group(_TOWN, "bird, cat, dog"),
    _group((FASHION, EVERYDAY, OUTDOOR), "horse"),
    _group((EVERYDAY, OUTDOOR), "sheep, cow"),
    _group((EVERYDAY,), "elephant, bear, zebra, giraffe"),
    # Sport and play.
    _group(
        (FASHION, EVERYDAY, OUTDOOR), "sports ball, frisbee, skateboard, kite, tennis racket, surfboard, teddy bear"
    ),
    _group((EVERYDAY,), "skis, snowboard, baseball bat, baseball glove"),
    # Food and the table.
    _group((*_TOWN, FIELD), "food, fruit"),
    _group((STREET, FASHION, EVERYDAY, OUTDOOR, FRONT), "apple, orange, banana"),
    _group((EVERYDAY,), "sandwich, broccoli, hot dog, pizza, donut, cake"),
    _group((EVERYDAY, FIELD), "carrot"),
    _group((FASHION, EVERYDAY, OUTDOOR), "wine glass, bowl"),
    _group((EVERYDAY,), "fork, knife, spoon"),
    # Devices.
    _group((FASHION, EVERYDAY, OUTDOOR, WORKSHOP), "tv, laptop, keyboard, mouse, remote, scissors"),
    _group((EVERYDAY,), "microwave, oven, toaster, refrigerator, sink, toilet, hair drier, toothbrush"),
    # Industrial parts. A container, a profile or a motor is seen elsewhere too, if never this very one.
    _group((STREET, FASHION, EVERYDAY, OUTDOOR, FRONT), "blue container box, red container box, motor"),
    _group(
        (STREET, FASHION, EVERYDAY, FRONT),
        "black aluminium profile 20x20, black aluminium profile 40x40,"
        "grey aluminium profile 20x20, grey aluminium profile 40x40",
    ),
    _group(
        (),
        "m20x100 bolt, m20 nut, m30 nut, r20 plastic nut, bearing box (ax-01), bearing box (ax-16), ball bearing,"
        "axis shaft, distance tube, em_01, em_02",
    ),
)

_SYNONYMS: dict[str, str] = {
    "accessories": "clothing accessories",
    "aeroplane": "airplane",
    "plane": "airplane",
    "automobile": "car",
    "bike": "bicycle",
    "bus stop sign": "traffic sign",
    "cellphone": "cell phone",
    "mobile phone": "cell phone",
    "cyclist": "bicyclist",
    "rider": "bicyclist",
    "doughnut": "donut",
    "handbag": "purse",
    "hair dryer": "hair drier",
    "footpath": "pavement",
    "sidewalk": "pavement",
    "motorbike": "motorcycle",
    "pedestrian": "person",
    "people": "person",
    "human": "person",
    "sign symbol": "traffic sign",
    "road sign": "traffic sign",
    "street": "road",
    "sofa": "couch",
    "soil": "dirt",
    "television": "tv",
    "trousers": "pants",
    "ocean": "sea",
    "railway": "railroad",
    "plant": "vegetation",
    "lorry": "truck",
    "carpet": "rug",
    "traffic signal": "traffic light",
}

CONCEPTS: dict[str, str] = {concept: concept for group in GROUPS for concept in group.concepts} | _SYNONYMS
"""Label name (lower case, singular where both exist) -> canonical concept."""

BROADER: dict[str, tuple[str, ...]] = {
    "bicyclist": ("person",),
    "face": ("person",),
    "body": ("person",),
    "hair": ("person",),
    "skin": ("person", "face", "body"),
    "traffic sign": ("sign", "traffic infrastructure"),
    "stop sign": ("traffic sign",),
    "traffic light": ("traffic infrastructure",),
    "house": ("building",),
    "facade": ("building",),
    "shop": ("building",),
    "roof": ("building", "house"),
    "balcony fence": ("fence",),
    "river": ("water",),
    "sea": ("water",),
    "tree": ("vegetation",),
    "grass": ("vegetation",),
    "flower": ("vegetation",),
    "potted plant": ("vegetation",),
    "weed": ("vegetation",),
    "crop": ("vegetation",),
    "brick wall": ("wall",),
    "stone wall": ("wall",),
    "tiled wall": ("wall",),
    "wooden wall": ("wall",),
    "wooden floor": ("floor",),
    "rug": ("floor",),
    "dining table": ("table",),
    "playing field": ("grass",),
    "gravel": ("dirt",),
    "apple": ("fruit",),
    "banana": ("fruit",),
    "orange": ("fruit",),
    "fruit": ("food",),
    "carrot": ("food",),
    "broccoli": ("food",),
    "sandwich": ("food",),
    "hot dog": ("food",),
    "pizza": ("food",),
    "donut": ("food",),
    "cake": ("food",),
    "purse": ("bag",),
    "backpack": ("bag",),
    "suitcase": ("bag",),
    "wallet": ("purse",),
    "jeans": ("pants",),
    "sunglasses": ("glasses",),
    "boots": ("shoes",),
    "clogs": ("shoes",),
    "flats": ("shoes",),
    "heels": ("shoes",),
    "loafers": ("shoes",),
    "pumps": ("shoes", "heels"),
    "sandals": ("shoes",),
    "sneakers": ("shoes",),
    "wedges": ("shoes", "heels"),
    "blouse": ("top", "shirt"),
    "shirt": ("top",),
    "t-shirt": ("top", "shirt"),
    "bracelet": ("clothing accessories",),
    "earrings": ("clothing accessories",),
    "necklace": ("clothing accessories",),
    "ring": ("clothing accessories",),
    "watch": ("clothing accessories",),
    "belt": ("clothing accessories",),
    "bra": ("intimate",),
    "panties": ("intimate",),
}
"""Concept -> concepts that it is a kind or a part of (directly). A set may annotate both as if they were apart."""

_CONFUSABLE: tuple[frozenset[str], ...] = tuple(
    frozenset(name.strip() for name in line.split(","))
    for line in (
        "bag, purse, wallet, backpack, suitcase",
        "blazer, jacket, coat, cardigan, cape, suit, vest",
        "blouse, shirt, t-shirt, top, sweater, jumper, sweatshirt, hoodie, cardigan, bodysuit",
        "dress, romper, skirt, blouse, top",
        "pants, jeans, leggings, tights, suit",
        "stockings, tights, socks, leggings",
        "shoes, boots, clogs, flats, heels, loafers, pumps, sandals, sneakers, wedges",
        "intimate, bra, panties, swimwear, bodysuit",
        "person, bicyclist, body, face",
        "sign, traffic sign, stop sign, pole, traffic infrastructure, traffic light",
        "wall, brick wall, stone wall, tiled wall, wooden wall, building",
        "floor, wooden floor, rug, dirt, pavement",
        "table, dining table, counter, cabinet, shelf",
        "road, pavement, dirt, gravel, sand, platform",
        "grass, playing field, vegetation, dirt",
        "water, sea, river",
        "building, house, facade, shop, roof",
        "fence, balcony fence, net",
        "tree, vegetation, potted plant, flower, weed, crop",
        "car, truck, bus",
        "curtain, window blind, window",
        "blanket, towel, pillow, bed",
        "cup, wine glass, bowl, vase, bottle",
    )
)

_CONCEPT_GROUP: dict[str, Group] = {concept: group for group in GROUPS for concept in group.concepts}


def concept_of(name: str) -> str | None:
    """The canonical concept of a label name, or None for a name that the table does not know.

    Case, surrounding space, `_` or `-` for a space, and a plural are seen through ("Aeroplanes" is "airplane").
    """
    text = " ".join(name.casefold().split())
    for spelling in (text, text.replace("_", " "), text.replace("-", " "), text.replace("_", "-")):
        for singular in _singulars(spelling):
            if singular in CONCEPTS:
                return CONCEPTS[singular]
    return None


def _singulars(word: str) -> list[str]:
    """The word itself, then what it may be the plural of."""
    forms = [word, f"{word}s"]  # "shoe" is asked where the set says "shoes"
    if word.endswith("ies"):
        forms.append(word[:-3] + "y")
    if word.endswith("es"):
        forms.append(word[:-2])
    if word.endswith("s") and not word.endswith("ss"):
        forms.append(word[:-1])
    return forms


def same_concept(a: str, b: str) -> bool:
    """Whether two names mean the same: the same word, a plural, or a declared synonym."""
    concept = concept_of(a)
    if concept is None or concept_of(b) is None:
        return _plain(a) == _plain(b)
    return concept == concept_of(b)


def _plain(name: str) -> str:
    """The spelling by which names are compared that the table does not know."""
    text = " ".join(name.casefold().replace("_", " ").split())
    return text[:-1] if text.endswith("s") and not text.endswith("ss") else text


def broader_concepts(name: str) -> frozenset[str]:
    """Every concept that the name's concept is a kind or a part of, however far up."""
    found: set[str] = set()
    waiting = list(BROADER.get(concept_of(name) or "", ()))
    while waiting:
        concept = waiting.pop()
        if concept not in found:
            found.add(concept)
            waiting.extend(BROADER.get(concept, ()))
    return frozenset(found)


def is_related(a: str, b: str) -> bool:
    """Whether two names mean the same, or one is a kind or a part of the other."""
    return same_concept(a, b) or concept_of(a) in broader_concepts(b) or concept_of(b) in broader_concepts(a)


def is_doubtful_negative(name: str, present: Iterable[str]) -> bool:
    """Whether calling `name` absent is doubtful because of what is annotated as present in the same photo.

    True for a kind or part of a present class, the reverse, and pairs that annotators confuse (purse and bag, blazer
    and jacket). It concerns a set's *own* classes: the set's annotation decides what its figures count, a sampler may
    prefer clearer negatives.
    """
    concept = concept_of(name)
    for other in present:
        if is_related(name, other):
            return True
        if any(concept in group and concept_of(other) in group for group in _CONFUSABLE):
            return True
    return False


def reason_not_negative(
    own_set: str, own_classes: Sequence[str], name: str, *, unknown_is_reason: bool = True
) -> str | None:
    """Why `name` must not be called absent on the photos of a set, or None where it is certainly absent.

    Args:
        own_set: Folder name of the data set, for its domain.
        own_classes: Every class that the set annotates, present or not.
        name: A name of another set.
        unknown_is_reason: Whether not to know the name or the set is a reason. Without it, such a name is only compared
            with the set's own classes, and the caller answers for its absence.
    """
    for own in own_classes:
        if same_concept(name, own):
            return f"means the same as the set's own class {own!r}"
    for own in own_classes:
        if is_related(name, own):
            return f"is a kind or a part of the set's own class {own!r}, or the reverse"
    concept = concept_of(name)
    if concept is None:
        if not unknown_is_reason:
            return None
        return "is not in the table of concepts"
    domain = DOMAINS.get(own_set)
    if domain is None:
        if not unknown_is_reason:
            return None
        return f"the photos of {own_set!r} are of no known domain"
    if domain in _CONCEPT_GROUP[concept].may_turn_up:
        return f"may be in a {domain} without being annotated"
    return None


def possible_negatives(own_set: str, own_classes: Sequence[str], candidates: Iterable[str]) -> list[str]:
    """The candidates that are certainly absent from every photo of a set, in their order, each once.

    Args:
        own_set: Folder name of the data set ("camvid").
        own_classes: Every class that the set annotates.
        candidates: Names of other sets.
    """
    unique = dict.fromkeys(candidates)
    return [name for name in unique if reason_not_negative(own_set, own_classes, name) is None]


def implied_absent(absent_own: Collection[str], candidates: Iterable[str]) -> list[str]:
    """The candidates that are absent from *one* photo because the set's own class that covers them is absent from it.

    "river" where the set's "water" is absent, "airplane" where its "aeroplane" is. Valid only where the set annotates
    that class exhaustively; `absent_own` are the set's classes without a pixel in the photo.
    """
    absent = {concept_of(name) for name in absent_own} - {None}
    return [name for name in dict.fromkeys(candidates) if ({concept_of(name)} | broader_concepts(name)) & absent]
