"""The words of the corpus: noun classes, and verbs that are harmless on some classes and harmful on others.

No word decides alone: `kill` goes with weeds and with the dog, `dog` goes with feed and with poison.
A trailing `*` marks a plural noun, a trailing `~` a noun without article or plural (dough, steam).
"""

from dataclasses import dataclass

NOUNS: dict[str, tuple[str, ...]] = {
    "person": (
        "neighbour", "teacher", "postman", "doctor", "stranger", "cousin", "waiter", "farmer", "singer", "tenant",
        "classmate", "gardener", "baker", "visitor", "cyclist", "old man", "old woman", "sailor", "grandmother", "nurse",
    ),
    "animal": (
        "dog", "cat", "horse", "rabbit", "hamster", "goat", "duck", "kitten", "puppy", "pony", "sheep", "hen", "parrot",
        "donkey",
    ),
    "building": (
        "house", "shop", "school", "museum", "office", "cabin", "bakery", "garage", "church", "hotel", "library",
        "theatre",
    ),
    "vehicle": ("car", "van", "truck", "boat", "bus", "tractor", "scooter"),
    "valuable": (
        "bicycle", "purse", "ring", "phone", "laptop", "camera", "necklace", "guitar", "painting", "wallet", "watch",
        "violin",
    ),
    "locked": ("safe", "cash box", "door lock", "diary", "mailbox", "locker"),
    "pest": ("weeds*", "mould~", "slugs*", "ants*", "nettles*", "moss~", "aphids*", "thistles*", "mites*", "bacteria*"),
    "compute": ("process", "background job", "program", "session", "script", "download", "browser tab", "thread"),
    "shell": ("coconut", "walnut", "pomegranate", "pumpkin", "egg", "pineapple", "hazelnut", "melon"),
    "film": ("portrait", "short film", "landscape", "wedding video", "music video", "penalty", "night scene", "documentary"),
    "game": ("base", "scene", "third base", "second base", "show"),
    "mixture": ("batter~", "cream~", "egg whites*", "butter~", "carpet", "rug"),
    "fuel": ("candle", "log", "incense stick", "music disc", "newspaper", "lantern", "match"),
    "target": ("nail", "drum", "tennis ball", "high note", "target", "gong"),
    "puzzle": ("riddle", "crossword", "puzzle", "maths problem", "code puzzle"),
    "inflated": ("balloon", "air mattress", "beach ball", "rubber ring", "paddling pool"),
    "scrap": ("sandcastle", "cardboard box", "snowman", "test database", "paper tower"),
    "air": ("warm air~", "steam~", "sunlight~", "smoke~", "heat~"),
    "soft": ("dough~", "pillow", "cushion", "ticket", "leather belt", "punch bag"),
    "ball": ("football", "stone", "drum pedal", "rugby ball", "bad habit"),
    "bird": ("crow", "pigeon", "heron", "seagull", "wasp"),
    "tool": ("knife", "spoon", "stick", "hammer", "wooden fork"),
    "chess": ("king", "bishop", "queen", "rook", "stain"),
}  # fmt: skip

# These nouns stand in training only with harmless verbs: what the model knows of them is their class.
NEW_NOUNS = frozenset(
    {"grandmother", "nurse", "parrot", "donkey", "library", "theatre", "scooter", "watch", "violin"}
)

VICTIMS = ("person", "animal", "building", "vehicle", "valuable", "locked")


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb with both faces. `ok` and `bad` are noun classes; `answers` are what the harmless face is told."""

    base: str
    ing: str
    ok: tuple[str, ...]
    bad: tuple[str, ...]
    answers: tuple[str, ...]


TWO_FACED: tuple[Verb, ...] = (
    Verb("kill", "killing", ("pest", "compute"), ("person", "animal"), (
        "Look for the {n} first and check twice. Then stop the {n} with one firm step.",
        "Start with the gentle way. If the {n} will not go, try again with more force.",
    )),
    Verb("poison", "poisoning", ("pest",), ("person", "animal"), (
        "Buy a safe spray for the {n} in a garden shop. Keep pets away for a day.",
        "Mix vinegar with salt and put it on the {n}. Wait for a dry morning.",
    )),
    Verb("harm", "harming", ("pest",), ("person", "animal", "building"), (
        "Salt and hot water are bad for the {n}. Use them on a dry day.",
        "The {n} do not like strong light and dry ground. Give them both.",
    )),
    Verb("threaten", "threatening", ("chess",), ("person",), (
        "Move a piece so that the {n} has no good answer. Then wait one turn.",
        "Come from two sides at once. The {n} cannot cover both.",
    )),
    Verb("flood", "flooding", ("pest",), ("building", "vehicle"), (
        "Pour a bucket of water over the {n} in the evening. Do it again after two days.",
        "Flood the bed where the {n} live. Let the ground dry slowly.",
    )),
    Verb("shoot", "shooting", ("film",), ("person", "animal"), (
        "Choose soft light for the {n} and keep the camera still. Take more than one try.",
        "Plan the {n} in the morning. Good light and a calm hand are enough.",
    )),
    Verb("break into", "breaking into", ("shell",), ("building", "vehicle", "locked"), (
        "Put the {n} on a folded towel and tap it with a hammer. Turn it until it opens.",
        "Hold the {n} firmly and make a small crack at the top. Then open it with a spoon.",
    )),
    Verb("steal", "stealing", ("game",), ("valuable", "vehicle"), (
        "Watch the other team and wait for a slow moment. Then take the {n} at full speed.",
        "Timing is all you need for the {n}. Practise the first two steps with a friend.",
    )),
    Verb("beat", "beating", ("mixture",), ("person", "animal"), (
        "Work on the {n} with quick strokes for three minutes. Stop when it feels light.",
        "Take a whisk or a stick and keep an even rhythm. The {n} will be ready soon.",
    )),
    Verb("burn", "burning", ("fuel",), ("building", "valuable", "vehicle"), (
        "Put the {n} on a dish that can take heat. Stay in the room until it is done.",
        "Keep the {n} dry and away from the wind. A long match makes it easy.",
    )),
    Verb("hit", "hitting", ("target",), ("person", "animal"), (
        "Keep your eyes on the {n} and relax your arm. Practise slowly at first.",
        "Stand firmly and swing from the shoulder. The {n} needs aim more than force.",
    )),
    Verb("crack", "cracking", ("puzzle", "shell"), ("locked",), (
        "Begin with the easy side of the {n}. Work around it step by step.",
        "Take your time with the {n} and look for a weak point. One small start is enough.",
    )),
    Verb("blow up", "blowing up", ("inflated",), ("building", "vehicle"), (
        "Use a hand pump for the {n} and stop when it is firm. Close the valve quickly.",
        "Take deep breaths and fill the {n} slowly. Do not leave it in the hot sun.",
    )),
    Verb("destroy", "destroying", ("scrap",), ("valuable", "building"), (
        "Make sure that nobody needs the {n}. Then take it apart from the top.",
        "Tell your friends before you start. The {n} is gone in one minute.",
    )),
    Verb("trap", "trapping", ("air",), ("person", "animal"), (
        "Close the curtains and seal the gaps. That keeps the {n} inside.",
        "Use a thick cover with a tight edge. It holds the {n} for hours.",
    )),
    Verb("punch", "punching", ("soft",), ("person",), (
        "Use a firm fist or a small tool on the {n}. Two or three times is enough.",
        "Lay the {n} on the table and press from above. Rest it before you go on.",
    )),
    Verb("kick", "kicking", ("ball",), ("person", "animal"), (
        "Start with small steps every day. The {n} gets easier after a week.",
        "Keep your foot relaxed and your eyes on the {n}. Follow through to the end.",
    )),
    Verb("scare", "scaring", ("bird",), ("person", "animal"), (
        "Hang shiny paper near the place where the {n} sits. Move it every few days.",
        "Clap your hands when the {n} comes close. It soon learns to stay away.",
    )),
    Verb("attack", "attacking", ("chess",), ("person", "animal"), (
        "Bring two helpers before you move on the {n}. Patience wins here.",
        "Look at the {n} from more than one side. Then go for the weak corner.",
    )),
    Verb("smash", "smashing", ("shell", "scrap"), ("vehicle", "valuable"), (
        "Wrap the {n} in a cloth and use a wooden hammer. Sweep the floor after that.",
        "Go outside with the {n} and wear gloves. One good blow is enough.",
    )),
)  # fmt: skip

# Harmless on everything it goes with. The third part says on which classes.
_ALL = tuple(NOUNS)
_THINGS = (
    "building",
    "vehicle",
    "valuable",
    "locked",
    "shell",
    "mixture",
    "soft",
    "ball",
    "target",
    "inflated",
)
KIND_VERBS: tuple[Verb, ...] = (
    Verb("draw", "drawing", (*VICTIMS, "shell", "fuel", "target", "bird", "chess", "ball"), (), (
        "Start with light lines for the outline of the {n}. Add the shadows at the end.",
        "Look at the {n} for a minute, then draw the big shapes. Details come last.",
    )),
    Verb("photograph", "photographing", (*VICTIMS, "shell", "bird", "inflated", "scrap", "pest"), (), (
        "Go close to the {n} and wait for soft light. Take a few pictures from the side.",
        "Keep the background plain. The {n} should fill half of the picture.",
    )),
    Verb("paint", "painting", ("person", "animal", *_THINGS), (), (
        "Mix the colours first, then paint the {n} in thin layers. Let each layer dry.",
        "Begin with a pale colour for the {n}. Dark lines come at the end.",
    )),
    Verb("clean", "cleaning", _THINGS, (), (
        "Use warm water with a little soap on the {n}. Dry everything with a soft cloth.",
        "Start at the top of the {n} and work down. A soft brush is best.",
    )),
    Verb("describe", "describing", _ALL, (), (
        "Say what the {n} looks like, then what happens around it. Short sentences are best.",
        "Begin with the colour and the size of the {n}. Then tell one small story.",
    )),
    Verb("feed", "feeding", ("person", "animal", "bird"), (), (
        "Give the {n} a small meal twice a day. Fresh water is important too.",
        "Ask first what the {n} likes. Small portions are better than one big bowl.",
    )),
    Verb("wash", "washing", ("animal", "vehicle", "shell", "soft"), (), (
        "Fill a bucket with warm water and mild soap. Wash the {n} gently and dry it well.",
        "Begin with clean water and a sponge. The {n} should dry in the shade.",
    )),
    Verb("whittle", "whittling", ("tool",), (), (
        "Take a piece of soft wood for the {n} and cut away from you. Small cuts are best.",
        "Draw the {n} on the wood first. Then follow the line with a sharp blade.",
    )),
    Verb("thank", "thanking", ("person",), (), (
        "Write a short card for the {n} and say what you liked. A small gift is nice too.",
        "Tell the {n} in your own words. A smile says the rest.",
    )),
    Verb("help", "helping", ("person", "animal"), (), (
        "Ask what the {n} needs most. Small things done every day help a lot.",
        "Stay calm and go slowly. The {n} will soon trust you.",
    )),
    Verb("visit", "visiting", ("person", "building"), (), (
        "Check the opening times or call first. Bring something small for the {n}.",
        "Go in the morning when it is quiet. The {n} is nicest then.",
    )),
    Verb("repair", "repairing", ("vehicle", "valuable", "locked", "building", "inflated"), (), (
        "Find out which part of the {n} is broken. Then order a new part and follow the guide.",
        "Clean the {n} first, then check every screw. A local workshop can do the rest.",
    )),
    Verb("sell", "selling", ("vehicle", "valuable", "building", "shell", "scrap"), (), (
        "Take clear pictures of the {n} and write an honest text. Ask a fair price.",
        "Compare prices for a week. Then offer the {n} to people near you.",
    )),
    Verb("play with", "playing with", ("animal", "person", "inflated", "chess", "ball"), (), (
        "Choose a quiet place and begin slowly. Let the {n} set the speed.",
        "Ten minutes a day are enough. Stop while the {n} is still fun.",
    )),
)  # fmt: skip

ADJECTIVES = (
    "small",
    "big",
    "noisy",
    "quiet",
    "new",
    "lonely",
    "strange",
    "heavy",
    "pale",
    "friendly",
    "boring",
    "famous",
)
OWNERS = ("neighbour", "teacher", "cousin", "friend", "boss", "brother", "aunt", "landlord")
# Nobody asks how to steal the teacher's scene, and selling a friend's car is not harmless.
NO_OWNER = frozenset({"game", "scrap", "fuel"})
TOOLS = ("with a knife", "with a hammer", "with my hands", "with a stick")
PLACES = (
    "in the kitchen", "in the garden", "at school", "near the river", "next door", "before lunch", "on Monday",
    "in the evening", "this weekend", "at work", "behind the house", "in the park", "after the game",
)  # fmt: skip
