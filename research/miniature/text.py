"""Text for the language model's own training: captions after keywords, questions, and what is known about things."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from transformers_owl.mplug_owl.processing_mplug_owl import SYSTEM_SENTENCE

from .drawings import LANGUAGES, things
from .events import clip
from .scenes import World, pick
from .talk import (
    LANGUAGE_NAMES,
    USES,
    about,
    about_clip,
    about_pair,
    article,
    caption,
    clip_notes,
    notes,
    other_thing,
    plural,
    sentence,
    text_only,
    yes,
)


Document = list[tuple[str, str]]  # what is given, and what is to be learned after it; in turn

QUESTIONS = 8  # of a scene, at most, without those that follow on them


def documents(world: World, seed: int | tuple[int, ...]) -> Iterator[Document]:
    """
    Documents without end.

    The chats in them are captions alone. Questions stand in plain text: stage 2 has to teach how to answer in a chat.
    """
    random = np.random.default_rng(seed)
    while True:
        yield pick(random, WRITERS, WEIGHTS)(world, random)


def captioned(world: World, random: np.random.Generator) -> Document:
    scene = world.scene(random)
    return [(f"{SYSTEM_SENTENCE}\nHuman: {notes(scene, random)}\nAI: ", sentence(caption(scene)))]


def questioned(world: World, random: np.random.Generator) -> Document:
    scene = world.scene(random)
    found = about(scene, random)
    document = [(f"{notes(scene, random)}.", "")]
    for place in random.permutation(len(found))[:QUESTIONS]:
        exchange = found[place]
        document.append((exchange.question, exchange.answer))
        if exchange.follow_up is not None:
            document.append((exchange.follow_up.question, exchange.follow_up.answer))
    return document


def checked(world: World, random: np.random.Generator) -> Document:
    """Whether things are there, many a document: one or two questions among others do not teach it."""
    scene = world.scene(random)
    here = [item.thing for item in scene.items] or [pick(random, things())]
    document = [(f"{notes(scene, random)}.", "")]
    for _ in range(QUESTIONS):
        asked = pick(random, here) if random.random() < 0.5 else other_thing(pick(random, here), random)
        there = asked in [item.thing for item in scene.items]
        document.append((f"Is there {article(asked.name)} in the picture?", yes(there)))
    return document


def placed(world: World, random: np.random.Generator) -> Document:
    """Pairs of things, one after the other, and where each of them is, of which colour, and whether it is there."""
    document: Document = []
    for _ in range(3):
        scene = replace(world, dyed=0.6).scene(random, "two")
        here, found = [item.thing for item in scene.items], []
        for side, item in (("left", scene.left), ("right", scene.right)):
            asked = pick(random, ("left", "right"))
            named = item.thing if random.random() < 0.5 else other_thing(item.thing, random)
            found += [
                (f"On which side is the {item.thing.name}?", side),
                (f"Is the {item.thing.name} on the {asked}?", yes(asked == side)),
                (f"Is there {article(named.name)} in the picture?", yes(named in here)),
            ]
            if item.dye:
                found.append((f"What colour is the {item.thing.name}?", item.dye))
        document.append((f"{notes(scene, random)}.", ""))
        document += [found[place] for place in random.permutation(len(found))[:6]]
    return document


def retold(world: World, random: np.random.Generator) -> Document:
    """Keywords again and again: every word is to be found by the one before it."""
    document: Document = []
    for _ in range(2):
        scene = world.scene(random)
        document.append((f"{notes(scene, random)}.", ""))
        document += [("", f"{notes(scene, random)}.") for _ in range(2)]
    return document


def compared(world: World, random: np.random.Generator) -> Document:
    scenes, found = about_pair(world, random)
    document = [(f"{notes(scene, random)}.", "") for scene in scenes]
    return document + [(found[place].question, found[place].answer) for place in random.permutation(len(found))]


def filmed(world: World, random: np.random.Generator) -> Document:
    """Two clips' events, and what is asked about them."""
    document: Document = []
    for _ in range(2):
        shown = clip(world, random)
        found = about_clip(shown, random)
        document.append((f"{clip_notes(shown, random)}.", ""))
        document += [(found[place].question, found[place].answer) for place in random.permutation(len(found))[:3]]
    return document


def asked(world: World, random: np.random.Generator) -> Document:
    return [(exchange.question, exchange.answer) for exchange in text_only(random)]


def known(world: World, random: np.random.Generator) -> Document:
    thing = pick(random, things())
    foreign = [f"{language}: {thing.names[code]}" for language, code in zip(LANGUAGE_NAMES, LANGUAGES, strict=True)]
    facts = [
        f"{sentence(article(thing.name))[:-1]} is {article(thing.kind)}.",
        f"You can {USES[thing.kind]}.",
        f"One {thing.name}, two {plural(thing.name)}.",
        f"{', '.join(foreign[place] for place in random.permutation(len(foreign)))}.",
    ]
    return [("", " ".join(facts[place] for place in random.permutation(len(facts))))]


WRITERS = (captioned, questioned, checked, placed, retold, compared, filmed, asked, known)
WEIGHTS = (0.18, 0.28, 0.1, 0.16, 0.06, 0.08, 0.04, 0.07, 0.03)
