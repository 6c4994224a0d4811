"""Things and stuff: of which names the objects are told apart where a label does not say so itself.

A thing can be counted (five cars), stuff cannot (sky, grass). The names are those of public data sets and of our own
recipe: COCO's panoptic classes say which is which, and ADE20K's, Cityscapes' and CamVid's names are sorted in the same
way. A name that can be both, or that is usually drawn as one (flowers, a pair of shoes, food), is in neither list.
"""

from typing import Literal

_THINGS = """
person, man, woman, child, boy, girl, baby, pedestrian, bicyclist, cyclist, rider, driver, player, worker, face, head,
hand, bicycle, bike, car, motorcycle, motorbike, minibike, scooter, airplane, aeroplane, plane, helicopter, bus, train,
truck, lorry, van, tractor, trailer, caravan, boat, ship, vehicle, tram, drone, traffic light, fire hydrant, stop sign,
traffic sign, sign, sign symbol, signboard, parking meter, bench, streetlight, pole, animal, bird, cat, dog, horse,
sheep, cow, pig, goat, chicken, duck, goose, fish, shark, whale, dolphin, turtle, frog, snake, lizard, insect, bee,
butterfly, spider, elephant, bear, zebra, giraffe, monkey, ape, lion, tiger, leopard, wolf, fox, deer, rabbit, squirrel,
mouse, rat, otter, penguin, kangaroo, camel, crab, snail, backpack, umbrella, handbag, bag, suitcase, wallet, purse,
tie, hat, helmet, watch, frisbee, snowboard, ball, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, mug, fork, knife, spoon, bowl, plate, pot, pan, tray, can, jar,
banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, lemon, pear, peach, strawberry, tomato,
potato, egg, mushroom, chair, armchair, swivel chair, stool, ottoman, couch, sofa, potted plant, bed, dining table,
coffee table, pool table, desk, table, toilet, bathtub, tv, television, television receiver, monitor, screen,
crt screen, laptop, computer, remote, keyboard, cell phone, phone, camera, microwave, oven, stove, toaster, dishwasher,
washer, sink, refrigerator, fridge, book, clock, vase, scissors, teddy bear, toy, doll, hair drier, toothbrush, lamp,
sconce, chandelier, pillow, cushion, mirror, painting, poster, door, window, windowpane, box, carton, container, crate,
barrel, basket, package, parcel, pallet, flag, tent, palm, fountain, sculpture, tower, fan, radiator, wardrobe,
chest of drawers, cradle, ashcan, trash can, bin, wheel, tire, bolt, nut, screw, bearing, ball bearing, motor,
led, resistor, button, capacitor, transistor, logic gate, chip, coin, pill, tablet, cell, nucleus, satellite
"""

_STUFF = """
sky, cloud, fog, snow, ice, water, sea, ocean, river, lake, waterfall, swimming pool, grass, lawn, vegetation, forest,
tree, bush, ground, earth, land, soil, dirt, dirt track, mud, sand, gravel, rock, field, playing field, hill, mountain,
road, street, lane, lane marking, pavement, sidewalk, path, runway, railroad, parking, platform, bridge, pier, wall,
brick wall, stone wall, tiled wall, wooden wall, floor, wooden floor, ceiling, roof, facade, building, house,
skyscraper, fence, railing, guard rail, balcony fence, stairs, stairway, shelf, cabinet, counter, countertop,
kitchen island, curtain, blind, window blind, blanket, towel, rug, carpet, banner, net, cardboard, paper, terrain,
roadside ground, building or vegetation, background, smoke, fire, rust, crack, corrosion, hair, skin, clothing, apparel,
fruit, food, light
"""

_MANY = {"people": "person", "persons": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse"}
_MANY |= {"geese": "goose", "knives": "knife", "wolves": "wolf", "nuclei": "nucleus", "buses": "bus", "leaves": "leaf"}


def _names(text: str) -> frozenset[str]:
    return frozenset(" ".join(name.split()) for name in text.split(","))


THINGS, STUFF = _names(_THINGS), _names(_STUFF)


def kind_of(name: str) -> Literal["thing", "stuff"] | None:
    """Whether a class name is that of a thing or of stuff; None: not known. Case, spaces, `_`, `-` and a plural do not
    matter."""
    plain = " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
    for form in (plain, *_singulars(plain)):
        if form in THINGS:
            return "thing"
        if form in STUFF:
            return "stuff"
    return None


def _singulars(word: str) -> list[str]:
    """What a name may be the plural of."""
    forms = [_MANY[word]] if word in _MANY else []
    for ending, instead in (("ies", "y"), ("es", ""), ("s", "")):
        if word.endswith(ending) and not word.endswith("ss"):
            forms.append(word.removesuffix(ending) + instead)
    return forms
