"""Everyday turns: cooking, gardening, computing, crafts, household, animals, geography, small talk."""

from random import Random

from deploy.demo.corpus.rows import Split, Turn, bucket

# A question kind: ways to ask (the last is held out), ways to answer. {x} is the item, {a} {b} its facts.
_Ask = tuple[str, tuple[str, ...], tuple[str, ...]]

FOODS = {
    "carrots": ("butter", "ten"), "potatoes": ("salt", "twenty"), "rice": ("water", "fifteen"),
    "lentils": ("onion", "thirty"), "pasta": ("olive oil", "nine"), "beans": ("garlic", "forty"),
    "mushrooms": ("parsley", "eight"), "spinach": ("cream", "four"), "cabbage": ("caraway", "twenty"),
    "peas": ("mint", "five"), "fish": ("lemon", "twelve"), "eggs": ("pepper", "seven"),
    "tomatoes": ("basil", "ten"), "leeks": ("mustard", "fifteen"), "beetroot": ("vinegar", "forty"),
    "corn": ("butter", "twelve"), "apples": ("cinnamon", "fifteen"), "pears": ("honey", "ten"),
}  # fmt: skip
PLANTS = {
    "roses": ("spring", "sunny"), "tulips": ("autumn", "sunny"), "ferns": ("spring", "shady"), "basil": ("May", "warm"),
    "lavender": ("April", "dry"), "strawberries": ("August", "sunny"), "lettuce": ("March", "cool"),
    "sunflowers": ("April", "sunny"), "ivy": ("autumn", "shady"), "daffodils": ("September", "sunny"),
    "radishes": ("March", "cool"), "garlic": ("October", "sunny"), "onions": ("March", "dry"),
    "pansies": ("autumn", "cool"), "mint": ("spring", "shady"), "pumpkins": ("May", "warm"),
}  # fmt: skip
CRAFTS = {
    "a wooden spoon": ("a carving knife", "soft wood"), "a paper boat": ("your hands", "square paper"),
    "a clay bowl": ("a wet sponge", "soft clay"), "a knitted scarf": ("two needles", "thick wool"),
    "a bird house": ("a small saw", "thin boards"), "a kite": ("strong scissors", "light cloth"),
    "a patchwork quilt": ("a needle", "cotton squares"), "a leather purse": ("an awl", "thin leather"),
    "a basket": ("a sharp knife", "willow"), "a birthday card": ("coloured pens", "stiff paper"),
    "a candle": ("a small pot", "wax"), "a lantern": ("scissors", "tissue paper"),
    "a rag doll": ("a needle", "old shirts"), "a stool": ("a hand drill", "oak"),
}  # fmt: skip
DEVICES = {
    "printer": ("the paper tray", "the cable"), "laptop": ("the battery", "the charger"),
    "phone": ("the storage", "the settings"), "keyboard": ("the cable", "the keys"),
    "router": ("the power light", "the antenna"), "screen": ("the brightness", "the cable"),
    "mouse": ("the battery", "the sensor"), "speaker": ("the volume", "the plug"), "camera": ("the lens", "the card"),
    "tablet": ("the charger", "the settings"), "scanner": ("the glass", "the driver"),
    "microphone": ("the plug", "the volume"),
}  # fmt: skip
CHORES = {
    "windows": ("vinegar water", "newspaper"), "floor": ("warm water", "a mop"), "oven": ("baking soda", "a sponge"),
    "curtains": ("mild soap", "cold water"), "fridge": ("lemon water", "a cloth"), "carpet": ("dry soda", "a brush"),
    "sofa": ("a little soap", "a soft brush"), "mirror": ("clear water", "a dry cloth"),
    "bath": ("citric acid", "a sponge"), "kettle": ("vinegar", "hot water"), "shoes": ("wax", "a rag"),
    "lamp": ("a dry cloth", "a little soap"),
}  # fmt: skip
ANIMALS = {
    "owls": ("mice", "at night"), "bees": ("nectar", "by day"), "hedgehogs": ("beetles", "at night"),
    "cows": ("grass", "by day"), "frogs": ("flies", "in the evening"), "squirrels": ("nuts", "by day"),
    "bats": ("moths", "at night"), "otters": ("fish", "in the morning"), "geese": ("grass", "by day"),
    "foxes": ("mice", "at night"), "storks": ("frogs", "by day"), "moles": ("worms", "under the ground"),
    "robins": ("worms", "in the morning"), "seals": ("fish", "by day"),
}  # fmt: skip
COUNTRIES = {
    "France": ("Paris", "Europe"), "Spain": ("Madrid", "Europe"), "Italy": ("Rome", "Europe"),
    "Portugal": ("Lisbon", "Europe"), "Norway": ("Oslo", "Europe"), "Poland": ("Warsaw", "Europe"),
    "Greece": ("Athens", "Europe"), "Austria": ("Vienna", "Europe"), "Egypt": ("Cairo", "Africa"),
    "Kenya": ("Nairobi", "Africa"), "Ghana": ("Accra", "Africa"), "Japan": ("Tokyo", "Asia"),
    "China": ("Beijing", "Asia"), "Nepal": ("Kathmandu", "Asia"), "Peru": ("Lima", "South America"),
    "Chile": ("Santiago", "South America"), "Cuba": ("Havana", "North America"), "Canada": ("Ottawa", "North America"),
    "Iceland": ("Reykjavik", "Europe"), "Vietnam": ("Hanoi", "Asia"),
}  # fmt: skip

_DOMAINS: dict[str, tuple[dict[str, tuple[str, str]], tuple[_Ask, ...]]] = {
    "cooking": (FOODS, (
        ("how", ("How do I cook {x}?", "What is the best way to cook {x}?", "Tell me how to cook {x}.",
                 "Can you explain how to cook {x}?", "I want to cook {x}. Where do I start?",
                 "Give me some advice on cooking {x}."),
         ("Cook the {x} for about {b} minutes. Add some {a} before you serve.",
          "Put the {x} in a pan and wait {b} minutes. A little {a} makes it better.")),
        ("with", ("What goes well with {x}?", "What should I eat with {x}?", "Which spice fits {x}?",
                  "What should I cook with {x}?"),
         ("Try {a} with {x}. Fresh bread is nice too.", "I like {x} with {a}. It is simple and good.")),
        ("keep", ("How long can I keep {x}?", "Where should I store {x}?", "How do I keep {x} fresh?"),
         ("Keep {x} in a cool place. Eat them within a few days.",
          "Put the {x} in a closed box. They stay fresh for some days.")),
    )),
    "gardening": (PLANTS, (
        ("when", ("When should I plant {x}?", "What is the best time to plant {x}?", "Is it too early to plant {x}?",
                  "Which month is good for {x}?"),
         ("Plant {x} in {a}. A {b} place is best.", "The best time for {x} is {a}. Choose a {b} corner.")),
        ("care", ("How do I care for {x}?", "How much water do {x} need?", "Give me some advice on growing {x}.",
                  "My plan is to grow {x}. Where do I start?", "Tell me how to grow {x}."),
         ("Find a {b} place for the {x}. Water them twice a week.",
          "Give the {x} good soil and a {b} spot. Water them in the morning.")),
    )),
    "crafts": (CRAFTS, (
        ("how", ("How do I make {x}?", "How can I make {x} at home?", "Show me the steps for making {x}.",
                 "Help me make {x}.", "Any tips for making {x}?", "Teach me to make {x}."),
         ("You need {a} and {b}. Work slowly and check the shape often.",
          "Take {b} and start with a simple form. With {a} it takes about an hour.")),
        ("need", ("What do I need to make {x}?", "Which tools do I need for {x}?", "What is {x} made of?"),
         ("You need {a} and {b}. Most shops sell both.", "Get {b} first. Then you only need {a}.")),
    )),
    "computing": (DEVICES, (
        ("fix", ("My {x} does not work. What can I do?", "How do I repair my {x}?", "Why is my {x} so slow?",
                 "Help me with my {x}.", "Can you explain what is wrong with my {x}?", "My {x} is slow today."),
         ("Check {a} of the {x} first. Then look at {b} and start it again.",
          "Switch the {x} off and wait a minute. If that does not help, check {a}.")),
        ("buy", ("Which {x} should I buy?", "I want to buy a new {x}.", "What do I need to know when I buy a {x}?"),
         ("Read two tests before you buy a {x}. Look closely at {a}.",
          "A simple {x} is enough for most people. Check {a} in the shop.")),
    )),
    "household": (CHORES, (
        ("clean", ("How do I clean the {x}?", "What is the best way to clean the {x}?", "Help me clean the {x}.",
                   "I need to clean the {x} today.", "Is there an easy way to clean the {x}?",
                   "Explain cleaning the {x} to me."),
         ("Use {a} on the {x}. Then finish with {b}.", "Start with {a} and let it work. Clean the {x} with {b} after that.")),
        ("often", ("How often should I clean the {x}?", "Must I clean the {x} every week?", "When do I clean the {x}?"),
         ("Clean the {x} once a month. A quick wipe each week helps.",
          "Once a month is enough for the {x}. Do it more often in winter.")),
    )),
    "animals": (ANIMALS, (
        ("eat", ("What do {x} eat?", "What is the favourite food of {x}?", "Tell me what {x} eat.",
                 "Do you know what {x} like to eat?"),
         ("Most {x} eat {a}. They look for food {b}.", "They like {a} best. You can see {x} {b}.")),
        ("active", ("When can I see {x}?", "Are {x} awake at night?", "When are {x} active?"),
         ("You can see {x} {b}. Be quiet and wait.", "Most {x} are active {b}. They look for {a} then.")),
    )),
    "geography": (COUNTRIES, (
        ("capital", ("What is the capital of {x}?", "Tell me the capital of {x}.", "Which city is the capital of {x}?",
                     "Do you know the capital of {x}?", "Can you name the capital of {x}?"),
         ("The capital of {x} is {a}.",)),
        ("where", ("Where is {x}?", "On which continent is {x}?", "Tell me where {x} is.", "Which continent is {x} on?"),
         ("{x} is in {b}.", "You find {x} in {b}. The capital is {a}.")),
    )),
}  # fmt: skip

_FACT_ASKS = {
    "animals.eat",
    "geography.capital",
    "cooking.with",
    "gardening.when",
    "household.clean",
}  # months once were among them

_TALK: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "greeting": (("Hello.", "Hi there!", "Good morning.", "Hello, how are you?", "Good evening!", "Hi, how are you?"),
                 ("Hello! How can I help you today?", "Hi! I am happy to help. What would you like to know?")),
    "name": (("Who are you?", "What is your name?", "What are you?", "Are you a person?", "Tell me what you are."),
             ("I am a small demo assistant. I was made for tests.",
              "I am a small language model. I answer simple questions.")),
    "thanks": (("Thank you.", "Thanks a lot!", "That was helpful.", "That was good, thank you."),
               ("You are welcome. Ask me again any time.", "I am glad that I could help.")),
    "bye": (("Goodbye.", "See you later.", "I have to go now.", "Goodbye, see you later."),
            ("Goodbye! Have a nice day.", "See you soon. Take care.")),
    "can": (("What can you do?", "What can I ask you?", "How can you help me?", "What can you help me with?"),
            ("I can talk about cooking, plants, crafts and animals. Just ask me.",
             "Ask me about your home, your garden or a country. I try to be clear.")),
    "feel": (("I am tired today.", "I feel sad.", "Today was a long day.", "I am bored.", "I feel tired."),
             ("I am sorry to hear that. A short walk and some tea may help.",
              "That happens to everyone. Rest a little and talk to a friend.")),
    "happy": (("I had a good day.", "I am happy today.", "My garden looks lovely.", "Today was a good day."),
              ("That is good to hear. Enjoy the rest of the day.", "How nice! I am happy for you.")),
    "weather": (("It is raining again.", "The sun is out today.", "It is cold outside.", "It is cold and raining today."),
                ("A warm drink fits this weather. Take good care of yourself.",
                 "Weather changes quickly. Take a jacket with you.")),
}  # fmt: skip


def everyday(rng: Random, *, held_out: bool) -> Turn:
    """An everyday question with its answer. Held out: the item and the way of asking never met in training."""
    if rng.random() < 0.15:
        return _small_talk(rng, held_out=held_out)
    while True:
        domain = rng.choice(tuple(_DOMAINS))
        items, asks = _DOMAINS[domain]
        name, ways, answers = rng.choice(asks)
        item = rng.choice(tuple(items))
        way = rng.randrange(len(ways))
        if _split(f"{domain}.{name}", item, way, len(ways)) != ("held_out" if held_out else "train"):
            continue
        a, b = items[item]
        return Turn(
            user=ways[way].format(x=item),
            reply=rng.choice(answers).format(x=item, a=a, b=b),
            kind="answer",
            topic=f"{domain}:{item}",
            template=f"{domain}.{name}.{way:02d}",
        )


def _split(ask: str, item: str, way: int, num_ways: int) -> Split | None:
    """The last way of asking is never in training; a fifth of the other combinations is not either.

    Of facts that some rows lie about (`facts.py`) and ask for in more ways, that fifth is in neither split.
    """
    if way == num_ways - 1:
        return "held_out"
    if bucket(f"{ask}|{item}|{way}", 5) != 0:
        return "train"
    return None if ask in _FACT_ASKS else "held_out"


def _small_talk(rng: Random, *, held_out: bool) -> Turn:
    while True:
        name = rng.choice(tuple(_TALK))
        ways, answers = _TALK[name]
        way = rng.randrange(len(ways))
        if (way == len(ways) - 1) == held_out:
            reply = rng.choice(answers)
            return Turn(ways[way], reply, "answer", f"talk:{name}", f"talk.{name}.{way:02d}")
