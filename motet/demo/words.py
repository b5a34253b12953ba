"""Word lists of the demo world, and invented names made of syllables."""

from __future__ import annotations

import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ONSETS = _words("b br d dr f g gr h k kl l m n p pr r s st t th tr v vr z")
VOWELS = _words("a e i o u ae ia ei")
PLAIN_VOWELS = VOWELS[:5]
CODAS = _words("l n r s th m k nd rn x")

PROFESSIONS = _words("""
    baker weaver cartographer miller glazier surgeon archivist sailor mason tanner astronomer cooper fletcher
    gardener judge potter smith falconer printer scribe brewer diver herbalist carpenter locksmith painter jeweller
    shepherd tailor teacher clockmaker beekeeper dyer sculptor miner piper porter ranger notary fisher""")
INSTRUMENTS = _words("""
    lute viol fiddle harp drum flute oboe zither bagpipe horn lyre cello trumpet organ bassoon mandolin recorder
    dulcimer cornet bell""")
GOODS = _words("""
    amber wool salt copper honey silk barley glass paper ink cedar tin marble wine saffron pearls leather indigo
    olives slate pepper cheese coal flax granite ivory jade linen mint oats resin rope silver sugar tea timber
    vanilla velvet wax quartz""")
ADJECTIVES = _words("""
    Silver Hollow Crimson Quiet Burning Distant Golden Broken Hidden Frozen Last Pale Iron Velvet Endless Bitter
    Gentle Salted Wandering Scarlet Emerald Forgotten Painted Restless Sunken Twilight Veiled Winter Woven Ashen""")
NOUNS = _words("""
    Harbour Lantern Orchard Mirror Tower Garden River Crown Bridge Winter Letter Shadow Compass Feather Island
    Chapel Key Meadow Tide Well Road Field Star Song Gate Window Ship Stone Forest Bell""")
GENRES = _words("""
    ballad novel opera play epic fable sonnet satire chronicle hymn memoir comedy tragedy elegy romance treatise""")


def mint(rng: random.Random, count: int, used: set[str], endings: tuple[str, ...] = ("",)) -> list[str]:
    """`count` invented names like "Brethal" or "Stoliakford", none of them in `used`, which grows by them."""
    names: list[str] = []
    while len(names) < count:
        syllables = (ONSETS, VOWELS, ONSETS, PLAIN_VOWELS, CODAS, endings)
        name = "".join(rng.choice(parts) for parts in syllables).capitalize()
        if name not in used:
            used.add(name)
            names.append(name)
    return names
