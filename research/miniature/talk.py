"""What is said about scenes: captions, questions with answers, dialogues, verses; and questions without an image."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .drawings import LANGUAGES, Thing, things
from .events import Clip
from .scenes import DYES, Item, Scene, World, pick


NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
PLURAL_NAMES = ("grapes", "cherries", "glasses", "jeans", "scissors")
IRREGULAR = {"mouse": "mice", "fish": "fish", "sushi": "sushi", "bread": "bread", "corn": "corn"}
KINDS = tuple(dict.fromkeys(thing.kind for thing in things()))
USES = {
    "animal": "feed it", "fruit": "eat it raw", "vegetable": "cook it", "food": "serve it", "plant": "water it",
    "vehicle": "travel in it", "building": "go inside it", "clothing": "wear it", "instrument": "play music on it",
    "tool": "work with it", "device": "switch it on",
}  # fmt: skip
ALIVE = ("animal", "plant")
COLOURS = {
    "white": ("weiß", "blanc", "blanco", "白色"), "grey": ("grau", "gris", "gris", "灰色"),
    "black": ("schwarz", "noir", "negro", "黑色"), "red": ("rot", "rouge", "rojo", "红色"),
    "yellow": ("gelb", "jaune", "amarillo", "黄色"), "green": ("grün", "vert", "verde", "绿色"),
    "blue": ("blau", "bleu", "azul", "蓝色"), "pink": ("rosa", "rose", "rosa", "粉色"),
    "orange": ("orange", "orange", "naranja", "橙色"), "purple": ("lila", "violet", "morado", "紫色"),
    "brown": ("braun", "marron", "marrón", "棕色"),
}  # fmt: skip
FOREIGN_NAME = ("Was ist das?", "Qu'est-ce que c'est ?", "¿Qué es esto?", "这是什么？")
FOREIGN_GROUND = (
    "Welche Farbe hat der Hintergrund?", "De quelle couleur est le fond ?", "¿De qué color es el fondo?",
    "背景是什么颜色？",
)  # fmt: skip
LANGUAGE_NAMES = ("German", "French", "Spanish", "Chinese")
RHYMES = {
    "white": "it shines by day, it shines by night", "grey": "it came this morning, it will stay",
    "black": "it went away and now is back", "red": "it dreams all night upon its bed",
    "yellow": "it is a bright and cheerful fellow", "green": "the finest thing I've ever seen",
    "blue": "it looks at me, it looks at you", "pink": "it does not sleep, it does not drink",
}  # fmt: skip
DESCRIBE = ("Describe the picture.", "What do you see?", "Write a caption for the picture.")
ONE_WORD, ONE_SENTENCE, LIST = r"\w+", r"[A-Z]\w*( \w+)+\.", r"- \w+(\n- \w+)+"
DESCRIBE_CLIP = ("Describe the video.", "What happens?")
HAPPENING = {"move": "move{s} {event}", "appear": "{event}{s}", "change": "turn{s} {event}", "jump": "jump{s} {event}"}
CLIP_ABILITIES = {"move": "movement", "appear": "coming and going", "change": "change", "jump": "jumps"}
VERSE = ("Write a verse about the picture.", "Make a poem of two lines about it.")


@dataclass(frozen=True)
class Exchange:
    """
    A question and its answer. `follow_up` is a second one, whose meaning depends on the first answer; where the form of
    the answer is what counts, `form` is a pattern for it.
    """

    ability: str
    question: str
    answer: str
    follow_up: "Exchange | None" = None
    form: str = ""

    def is_met_by(self, answer: str) -> bool:
        return bool(re.fullmatch(self.form, answer)) if self.form else answer == self.answer


def article(words: str) -> str:
    """The words with "a" or "an", or bare where the noun is a plural."""
    if words.split()[-1] in PLURAL_NAMES:
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(name: str) -> str:
    if name in PLURAL_NAMES or name in IRREGULAR:
        return IRREGULAR.get(name, name)
    if name.endswith(("s", "ch", "sh", "x", "ato")):
        return f"{name}es"
    return f"{name[:-1]}ies" if name.endswith("y") and name[-2] not in "aeiou" else f"{name}s"


def called(item: Item) -> str:
    return f"{item.dye} {item.thing.name}".strip()


def subject(scene: Scene) -> str:
    """What lies on the ground, without the ground."""
    if scene.kind == "two":
        return f"{article(called(scene.left))} on the left and {article(called(scene.right))} on the right"
    if scene.kind == "writing":
        written = f"the {'number' if scene.writing.isdigit() else 'word'} {scene.writing}"
        return f"{article(called(scene.items[0]))} above {written}" if scene.items else written
    item = scene.items[0]
    if len(scene.items) == 1:
        return article(called(item))
    return f"{NUMBERS[len(scene.items)]} {f'{item.dye} {plural(item.thing.name)}'.strip()}"


def caption(scene: Scene) -> str:
    return f"{subject(scene)} on {article(scene.ground)} background"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def verse(scene: Scene) -> str:
    return f"{sentence(f'{subject(scene)} on {scene.ground}')[:-1]},\n{RHYMES[scene.ground]}."


def notes(scene: Scene, random: np.random.Generator) -> str:
    """The scene in keywords, in any order: what a language model reads in place of an image."""
    if scene.kind == "two":
        words = [f"left {called(scene.left)}", f"right {called(scene.right)}"]
    elif scene.kind == "writing":
        words = [f"{'number' if scene.writing.isdigit() else 'word'} {scene.writing}", *map(called, scene.items)]
    else:
        words = [f"{NUMBERS[len(scene.items)]} {called(scene.items[0])}"]
    words.append(f"{scene.ground} background")
    return ", ".join(words[place] for place in random.permutation(len(words)))


def about_thing(item: Item) -> list[Exchange]:
    """Questions about "it"."""
    thing = item.thing
    found = [
        Exchange("kind", "What kind of thing is it?", thing.kind),
        Exchange("facts", "What can you do with it?", USES[thing.kind]),
        Exchange("facts", "Is it alive?", yes(thing.kind in ALIVE)),
    ]
    if item.dye:
        found.append(Exchange("colour", "What colour is it?", item.dye))
    return found


def yes(truth: bool) -> str:
    return "yes" if truth else "no"


def other_thing(thing: Thing, random: np.random.Generator) -> Thing:
    """Another one, in half of the cases of its kind."""
    alike = [other for other in things() if other != thing and (other.kind == thing.kind or random.random() < 0.1)]
    return pick(random, alike)


def about_one(scene: Scene, random: np.random.Generator) -> list[Exchange]:
    item = scene.items[0]
    name, several = item.thing.name, len(scene.items) > 1
    there = random.random() < 0.5
    asked = item.thing if there else other_thing(item.thing, random)
    found = [
        Exchange("name", pick(random, ("What is this?", "What is in the picture?")), name),
        Exchange("count", "How many things are there?", NUMBERS[len(scene.items)]),
        Exchange("count", f"How many {plural(name)} are there?", NUMBERS[len(scene.items)]),
        Exchange("yes/no", f"Is there {article(asked.name)} in the picture?", yes(there)),
        Exchange("format", "What is this? Answer in one word.", name, form=ONE_WORD),
        Exchange("format", "What is this? Answer in a sentence.", f"This is {article(name)}.", form=ONE_SENTENCE),
        *about_thing(item),
    ]
    if several:
        found[4:6] = []
    if item.dye:
        dye = item.dye if random.random() < 0.5 else pick(random, tuple(DYES))
        found.append(Exchange("yes/no", f"Is it {dye}?", yes(dye == item.dye)))
        found.append(Exchange("colour", f"What colour is the {name}?", item.dye))
    language = random.integers(len(LANGUAGES))
    found.append(Exchange("languages", FOREIGN_NAME[language], item.thing.names[LANGUAGES[language]]))
    return found


def about_two(scene: Scene, random: np.random.Generator) -> list[Exchange]:
    sides = {"left": scene.left, "right": scene.right}
    side = pick(random, tuple(sides))
    other = "left" if side == "right" else "right"
    item = sides[side]
    there = random.random() < 0.5
    asked = item.thing if there else other_thing(item.thing, random)
    there = asked in (scene.left.thing, scene.right.thing)
    names = [scene.left.thing.name, scene.right.thing.name]
    found = [
        Exchange("left/right", f"What is on the {side}?", item.thing.name, follow_up(item, sides[other], random)),
        Exchange(
            "left/right", f"What is on the {other}?", sides[other].thing.name, follow_up(sides[other], item, random)
        ),
        Exchange("left/right", f"On which side is the {item.thing.name}?", side),
        Exchange("yes/no", f"Is there {article(asked.name)} in the picture?", yes(there)),
        Exchange("yes/no", f"Is the {item.thing.name} on the left?", yes(side == "left")),
        Exchange("format", "List the things in the picture.", "\n".join(f"- {name}" for name in names), form=LIST),
        Exchange("count", "How many things are there?", "two"),
    ]
    if item.dye:
        found.append(Exchange("colour", f"What colour is the {item.thing.name}?", item.dye))
    return found


def follow_up(item: Item, other: Item, random: np.random.Generator) -> Exchange:
    """A question about what the last answer named, or about what it left out."""
    questions = [(e.question, e.answer) for e in about_thing(item)]
    questions.append(("And what is on the other side?", other.thing.name))
    return Exchange("second turn", *pick(random, questions))


def about_writing(scene: Scene, random: np.random.Generator) -> list[Exchange]:
    what, ability = ("number", "digits") if scene.writing.isdigit() else ("word", "words")
    found = [
        Exchange(ability, f"What {what} is written?", scene.writing),
        Exchange(ability, f"Read the {what}.", scene.writing),
        Exchange(
            "format",
            f"What {what} is written? Answer in a sentence.",
            f"The {what} is {scene.writing}.",
            form=ONE_SENTENCE,
        ),
    ]
    if scene.items:
        found.append(Exchange("name", f"What is above the {what}?", scene.items[0].thing.name))
    return found


ABOUT: dict[str, Callable[[Scene, np.random.Generator], list[Exchange]]] = {
    "one": about_one, "two": about_two, "many": about_one, "writing": about_writing,
}  # fmt: skip


def about(scene: Scene, random: np.random.Generator) -> list[Exchange]:
    """All that may be asked about a scene, each with its answer."""
    language = random.integers(len(LANGUAGES))
    return [
        *ABOUT[scene.kind](scene, random),
        Exchange("caption", pick(random, DESCRIBE), sentence(caption(scene))),
        Exchange("background", "What colour is the background?", scene.ground),
        Exchange("languages", FOREIGN_GROUND[language], COLOURS[scene.ground][language]),
        Exchange("verse", pick(random, VERSE), verse(scene)),
    ]


def about_pair(world: World, random: np.random.Generator) -> tuple[list[Scene], list[Exchange]]:
    """Two scenes of one thing each, and what may be asked about both."""
    alike = random.random() < 0.5
    while True:
        scenes = [world.scene(random, "one") for _ in range(2)]
        first, second = (scene.items[0].thing for scene in scenes)
        if first != second and alike == (first.kind == second.kind):
            break
    found = [Exchange("two pictures", "Do both pictures show the same kind of thing?", yes(alike))]
    for scene, ordinal in zip(scenes, ("first", "second"), strict=True):
        name = scene.items[0].thing.name
        background = f"What colour is the background of the {ordinal} picture?"
        found += [
            Exchange("two pictures", f"Which picture shows {article(name)}?", f"the {ordinal}"),
            Exchange("two pictures", f"What is in the {ordinal} picture?", name),
            Exchange("two pictures", background, scene.ground),
        ]
    return scenes, found


def happening(clip: Clip) -> str:
    """What a clip shows, without the ground."""
    ending = "" if clip.item.thing.name in PLURAL_NAMES else "s"
    return f"{article(called(clip.item))} {HAPPENING[clip.kind].format(event=clip.event, s=ending)}"


def clip_caption(clip: Clip) -> str:
    return f"{happening(clip)} on {article(clip.ground)} background"


def clip_notes(clip: Clip, random: np.random.Generator) -> str:
    """A clip in keywords, as `notes` has a scene."""
    words = [happening(clip).removeprefix("a ").removeprefix("an "), f"{clip.ground} background"]
    return ", ".join(words[place] for place in random.permutation(2))


def about_clip(clip: Clip, random: np.random.Generator) -> list[Exchange]:
    """What happens in a clip, first of all; and what an image would be asked, too."""
    asked = {
        "move": (("Where does it move?", clip.event), (f"Where does the {clip.item.thing.name} move?", clip.event)),
        "appear": (("Does it appear or disappear?", f"it {clip.event}s"),),
        "change": (("What colour is it at the end?", clip.event), ("What colour is it at first?", clip.item.dye)),
        "jump": (("How often does it jump?", clip.event),),
    }
    return [
        Exchange(CLIP_ABILITIES[clip.kind], *pick(random, asked[clip.kind])),
        Exchange("clip caption", pick(random, DESCRIBE_CLIP), sentence(clip_caption(clip))),
        Exchange("name", "What is this?", clip.item.thing.name),
        Exchange("background", "What colour is the background?", clip.ground),
    ]


def text_only(random: np.random.Generator) -> list[Exchange]:
    """Questions that need no image."""
    thing = pick(random, things())
    language = random.integers(len(LANGUAGES))
    colour = pick(random, tuple(COLOURS))
    a, b = random.integers(0, 10, 2)
    kind = thing.kind if random.random() < 0.5 else pick(random, KINDS)
    questions = (
        (f"What kind of thing is {article(thing.name)}?", thing.kind),
        (f"What can you do with {article(thing.name)}?", USES[thing.kind]),
        (f"Is {article(thing.name)} alive?", yes(thing.kind in ALIVE)),
        (f"Is {article(thing.name)} {article(kind)}?", yes(kind == thing.kind)),
        (f"What is {article(thing.name)} in {LANGUAGE_NAMES[language]}?", thing.names[LANGUAGES[language]]),
        (f"What is {colour} in {LANGUAGE_NAMES[language]}?", COLOURS[colour][language]),
        (f"What is {a} plus {b}?", str(a + b)),
        (f"What is the plural of {thing.name}?", plural(thing.name)),
    )
    return [Exchange("text only", *questions[place]) for place in random.permutation(len(questions))]


def dialogue(scene: Scene, random: np.random.Generator, turns: int = 4) -> list[Exchange]:
    """Some of what may be asked about a scene, each ability once, follow-ups right after their question."""
    found = about(scene, random)
    chosen: dict[str, Exchange] = {}
    for place in random.permutation(len(found)):
        chosen.setdefault(found[place].ability, found[place])
    flat: list[Exchange] = []
    for exchange in list(chosen.values())[:turns]:
        flat.append(exchange)
        if exchange.follow_up is not None:
            flat.append(exchange.follow_up)
    return flat
