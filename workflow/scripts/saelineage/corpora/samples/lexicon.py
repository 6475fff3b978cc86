"""The words of the English and story grammars: tables by topic, and the rules that inflect them."""

from functools import cache

from saelineage.corpora.samples.grammar import Word

IRREGULAR_PLURALS = {
    "mouse": "mice", "goose": "geese", "child": "children", "foot": "feet", "tooth": "teeth", "man": "men",
    "woman": "women", "sheep": "sheep", "fish": "fish", "deer": "deer", "leaf": "leaves", "loaf": "loaves",
    "knife": "knives", "wolf": "wolves", "calf": "calves", "shelf": "shelves", "scarf": "scarves", "half": "halves",
    "goldfish": "goldfish", "starfish": "starfish", "fisherman": "fishermen", "fireman": "firemen",
    "postman": "postmen",
    "snowman": "snowmen", "potato": "potatoes", "tomato": "tomatoes", "echo": "echoes", "reindeer": "reindeer",
}  # fmt: skip

# base: (past, participle)
IRREGULAR_VERBS = {
    "be": ("was", "been"), "have": ("had", "had"), "do": ("did", "done"), "go": ("went", "gone"),
    "run": ("ran", "run"), "eat": ("ate", "eaten"), "see": ("saw", "seen"), "make": ("made", "made"),
    "take": ("took", "taken"), "give": ("gave", "given"), "find": ("found", "found"), "sing": ("sang", "sung"),
    "swim": ("swam", "swum"), "fly": ("flew", "flown"), "draw": ("drew", "drawn"), "drink": ("drank", "drunk"),
    "sit": ("sat", "sat"), "sleep": ("slept", "slept"), "build": ("built", "built"), "buy": ("bought", "bought"),
    "bring": ("brought", "brought"), "catch": ("caught", "caught"), "throw": ("threw", "thrown"),
    "write": ("wrote", "written"), "read": ("read", "read"), "ride": ("rode", "ridden"), "hide": ("hid", "hidden"),
    "feed": ("fed", "fed"), "hold": ("held", "held"), "keep": ("kept", "kept"), "leave": ("left", "left"),
    "lose": ("lost", "lost"), "dig": ("dug", "dug"), "fall": ("fell", "fallen"), "grow": ("grew", "grown"),
    "know": ("knew", "known"), "think": ("thought", "thought"), "tell": ("told", "told"), "say": ("said", "said"),
    "come": ("came", "come"), "get": ("got", "got"), "put": ("put", "put"), "cut": ("cut", "cut"),
    "shut": ("shut", "shut"), "hear": ("heard", "heard"), "feel": ("felt", "felt"), "wear": ("wore", "worn"),
    "wake": ("woke", "woken"), "win": ("won", "won"), "spin": ("spun", "spun"), "sweep": ("swept", "swept"),
    "shake": ("shook", "shaken"), "blow": ("blew", "blown"), "break": ("broke", "broken"), "sell": ("sold", "sold"),
    "send": ("sent", "sent"), "meet": ("met", "met"), "pay": ("paid", "paid"), "lie": ("lay", "lain"),
    "stand": ("stood", "stood"), "teach": ("taught", "taught"), "choose": ("chose", "chosen"), "lend": ("lent", "lent"),
    "hang": ("hung", "hung"), "creep": ("crept", "crept"), "leap": ("leapt", "leapt"), "slide": ("slid", "slid"),
    "light": ("lit", "lit"), "set": ("set", "set"), "steal": ("stole", "stolen"), "bite": ("bit", "bitten"),
    "kneel": ("knelt", "knelt"), "forget": ("forgot", "forgotten"), "begin": ("began", "begun"),
    "understand": ("understood", "understood"),
}  # fmt: skip
DOUBLING = {
    "stop", "clap", "skip", "hop", "hug", "pat", "rub", "tap", "drop", "plan", "nod", "tug", "wag", "beg",
    "grab", "trip", "slip", "mop", "zip", "pop", "hum", "stir", "chop", "step", "chat", "wrap", "run", "swim",
    "sit", "dig", "put", "cut", "shut", "get", "win", "spin", "set", "forget", "begin",
}  # fmt: skip

BOYS = """Tom Ben Sam Max Leo Jack Tim Finn Oscar Noah Eli Hugo Omar Luca Owen Toby Arjun Kofi Mateo Henry Felix Ivan
Jamal Theo Milo Ravi Kenji Pablo Gus Caleb Simon Peter Andre Dylan Ahmed Oliver Ned Walter Diego Rob José René"""
GIRLS = """Lily Mia Anna Sara Ella Lucy Ruby Zara Nina Ivy Amy Rosa Maya Lena Tilly Daisy Priya Amina Yuki Clara Jane
Molly Eva Sofia Grace Hana Leila Poppy Kate Wendy Ines Nora Fern Beth Carmen Olive Ada Freya Pia Bella Zoë Chloé"""
MEN = "Dad;Grandpa;Uncle Jim;Uncle Joe;Mr. Hill;Mr. Okoro;Mr. Brook;Farmer Giles;Doctor Reed;Captain Moss"
WOMEN = "Mum;Grandma;Aunt Rose;Aunt May;Mrs. Park;Miss Lane;Mrs. Silva;Nurse Joy;Doctor Singh;Mrs. Bloom"
FAMILY = "Mum;Dad;Grandma;Grandpa;Mummy;Daddy;Granny;Nana"
JOBS = """baker:bakes bread and cakes;farmer:grows food and looks after animals;nurse:takes care of sick people
teacher:helps children learn;pilot:flies a plane;plumber:mends pipes and taps;painter:paints walls and pictures
doctor:helps people get well;fisherman:catches fish at sea;gardener:plants seeds and pulls up weeds
builder:puts up new houses;driver:takes people from place to place;dentist:looks after our teeth
postman:brings letters and parcels;cook:makes hot meals;tailor:makes clothes;vet:helps sick animals
librarian:looks after the books;sailor:works on a ship;fireman:puts out fires;singer:sings for other people
scientist:asks questions about the world;carpenter:makes things out of wood;clown:makes people laugh"""

# name: young: home: food: sound: ability: body: class
ANIMALS = """cow:calf:barn:grass:moo:give us milk:four strong legs and a long tail:mammal
dog:puppy:kennel:meat and biscuits:bark:smell things from far away:a wet nose and a tail that wags:mammal
cat:kitten:basket:fish and meat:purr:see well in the dark:soft fur and sharp claws:mammal
horse:foal:stable:hay and oats:neigh:run for a long way:a long mane and hard hooves:mammal
sheep:lamb:field:grass:baa:grow thick wool:a woolly coat:mammal
pig:piglet:sty:roots and corn:oink:find food with its nose:a round snout and a curly tail:mammal
duck:duckling:pond:weeds and bread:quack:swim all day and stay dry:wide feet and a flat beak:bird
hen:chick:coop:seeds and worms:cluck:lay eggs:red feathers and a small beak:bird
goose:gosling:farmyard:grass and grain:honk:fly south in autumn:a long neck and white feathers:bird
owl:owlet:hollow tree:mice:hoot:hunt at night:round eyes and quiet wings:bird
frog:tadpole:pond:flies:croak:jump very far:smooth wet skin and long back legs:amphibian
mouse:baby mouse:hole:seeds and cheese:squeak:squeeze through tiny gaps:round ears and a thin tail:mammal
rabbit:baby rabbit:burrow:grass and carrots:squeak:hop and dig:long ears and a fluffy tail:mammal
fox:cub:den:mice and berries:yap:hide in the grass:red fur and a bushy tail:mammal
bear:cub:cave:fish and honey:growl:sleep through the winter:thick fur and big paws:mammal
lion:cub:den:meat:roar:run fast for a short time:a golden coat and strong teeth:mammal
tiger:cub:forest:meat:roar:swim across rivers:orange fur with black stripes:mammal
elephant:calf:wide grassland:leaves and bark:trumpet:spray water with its trunk:huge ears and a long trunk:mammal
monkey:baby monkey:forest:fruit and nuts:chatter:swing from branch to branch:clever hands and a long tail:mammal
giraffe:calf:wide grassland:leaves:hum:reach the tops of trees:a very long neck and brown spots:mammal
zebra:foal:wide grassland:grass:bray:run away from lions:black and white stripes:mammal
penguin:chick:icy sea:fish:squawk:swim under the ice:short wings and a white chest:bird
whale:calf:deep sea:tiny sea animals:sing:hold its breath for an hour:smooth skin and a wide tail:mammal
dolphin:calf:warm sea:fish:click:leap out of the water:a smooth grey back and a fin:mammal
seal:pup:cold sea:fish:bark:dive deep:thick fat and strong flippers:mammal
shark:pup:deep sea:fish:make no sound:smell food from far away:rows of sharp teeth:fish
turtle:hatchling:warm sea:sea grass:hiss:live for many years:a hard shell and four flippers:reptile
snake:baby snake:hole:mice and eggs:hiss:move without legs:dry scales and no legs:reptile
crocodile:hatchling:muddy river:fish and birds:growl:wait very still in the water:tough skin and strong jaws:reptile
bee:grub:hive:nectar:buzz:make honey:two pairs of wings and a sting:insect
ant:grub:nest:seeds and crumbs:make no sound:lift things that are heavier than it is:six legs and two feelers:insect
butterfly:caterpillar:garden:nectar:make no sound:taste with its feet:four bright wings:insect
spider:spiderling:web:flies:make no sound:spin silk:eight legs:arachnid
squirrel:baby squirrel:nest of twigs:nuts:chatter:remember where it hid its food:a bushy tail:mammal
hedgehog:hoglet:pile of leaves:slugs and beetles:snuffle:roll into a ball:sharp spines:mammal
bat:pup:cave:moths:squeak:find its way by sound:wings made of skin:mammal
camel:calf:hot desert:dry plants:groan:live for days without water:a hump on its back:mammal
kangaroo:joey:dry grassland:grass:grunt:jump higher than a man:strong back legs and a pouch:mammal
parrot:chick:forest:fruit and seeds:squawk:copy the words that people say:bright feathers and a curved beak:bird
robin:chick:hedge:worms and berries:sing:stay all winter:a red chest and thin legs:bird"""

# name: kind: use: material
OBJECTS = """hammer:tool:hit nails:wood and steel;saw:tool:cut wood:steel;spoon:thing for the kitchen:stir soup:metal
kettle:thing for the kitchen:boil water:metal;clock:machine:tell the time:wheels and springs
umbrella:useful thing:keep off the rain:cloth and metal;bicycle:machine:ride to school:metal and rubber
boat:vehicle:cross the water:wood;train:vehicle:carry many people:steel;tractor:vehicle:pull heavy loads:steel
ladder:tool:reach high places:wood;broom:tool:sweep the floor:straw;lamp:useful thing:light a dark room:glass
telescope:instrument:look at the stars:glass and metal;drum:instrument:keep the beat:wood and skin
violin:instrument:play a tune:wood and string;piano:instrument:play music:wood and wire
pencil:useful thing:write and draw:wood;map:useful thing:find the way:paper;compass:instrument:find north:metal
needle:tool:sew cloth:steel;basket:useful thing:carry apples:straw;bucket:useful thing:carry water:tin
mirror:useful thing:see your own face:glass;window:part of a house:let the light in:glass
bridge:thing that people build:cross a river:stone or steel;lighthouse:tall tower:warn the ships:stone
oven:machine:bake bread:metal;fridge:machine:keep food cold:metal;truck:vehicle:move big boxes:metal
thermometer:instrument:measure how hot it is:glass;magnet:useful thing:pick up pins:iron
aeroplane:vehicle:travel through the air:light metal;anchor:heavy thing:keep a ship in one place:iron"""

# place, with its preposition: things seen there: what people do there (a line that starts with a space goes on)
PLACES = """in the kitchen:spoon,bowl,cup,pan,plate,oven,jug,table,chair,apron:bake a cake,wash the dishes,
 stir the soup,peel the potatoes,set the table,make a sandwich
in the garden:flower,tree,snail,spade,bench,worm,watering can,hedge,bird,leaf:dig a hole,water the flowers,
 plant some seeds,pick the beans,chase a butterfly,rake the leaves
at the park:swing,slide,bench,duck,kite,pond,bicycle,path,ball,tree:feed the ducks,fly a kite,ride a bike,
 play on the swings,climb a tree,kick a ball
at the beach:shell,bucket,spade,crab,wave,boat,towel,rock,gull,sandcastle:build a sandcastle,look for shells,
 swim in the sea,jump over the waves,eat an ice cream,dig in the sand
on the farm:cow,tractor,barn,hen,gate,sheep,haystack,pig,fence,cart:feed the hens,collect the eggs,milk the cows,
 ride on the tractor,brush the pony,carry the hay
at school:desk,pencil,book,board,ruler,map,bag,bell,globe,paintbrush:read a story,draw a picture,
 count to one hundred,learn a song,write some letters,play a game
in the forest:tree,mushroom,owl,path,stream,log,squirrel,pine cone,nest,fern:follow the path,look for mushrooms,
 listen to the birds,climb over the logs,pick some berries,build a den
at the zoo:lion,monkey,elephant,cage,keeper,penguin,giraffe,map,bear,parrot:look at the lions,laugh at the monkeys,
 feed the goats,watch the penguins,draw the elephants,wave at the bears
at the shop:basket,shelf,box,tin,coin,till,bag,list,loaf,bottle:buy some bread,count the coins,push the trolley,
 choose some apples,wait in the queue,carry the bags
in the bedroom:bed,pillow,blanket,lamp,toy,teddy,rug,drawer,slipper,curtain:make the bed,read a book,tidy the toys,
 look for a sock,put on a jumper,jump on the bed
in the bathroom:towel,toothbrush,bath,tap,sponge,comb,mirror,rubber duck:brush teeth,wash hands,splash in the bath,
 fill the bath,comb some hair
by the river:boat,fish,bridge,stone,duck,net,frog,rope,reed:throw stones into the water,watch the boats,
 catch a fish,paddle in the water,sit on the bank
at the station:train,ticket,clock,suitcase,bench,guard,platform,map:wait for the train,buy a ticket,
 look at the clock,wave goodbye,carry a suitcase
in the library:book,shelf,desk,lamp,card,chair,map,ladder:choose a book,sit quietly,look at the pictures,
 read about whales,whisper to a friend
at the market:stall,melon,basket,fish,carpet,coin,drum,lemon,cheese:taste some cheese,buy some fish,
 listen to the music,sell some apples,carry a basket
on the hill:kite,sheep,stone,gate,cloud,tree,tent,rabbit:fly a kite,roll down the grass,look at the clouds,
 run to the top,have a picnic
in the barn:horse,ladder,rope,owl,bucket,saddle,mouse,cart:brush the horse,climb the ladder,sweep the floor,
 play hide and seek,feed the kittens
at the museum:mask,statue,coin,painting,skeleton,crown,ship,guard:look at the bones,draw a mask,ask a question,
 follow the guide,point at the crown
in the street:car,bus,lamp,bin,shop,bicycle,dog,puddle:walk to school,jump in the puddles,wait for the bus,
 cross the road,wave to a friend
in the workshop:hammer,saw,nail,bench,plank,brush,tin,drill:hammer some nails,paint a chair,mend a toy,
 saw some wood,sweep up the dust
in the snow:snowman,sledge,scarf,hat,footprint,glove,shovel,icicle:build a snowman,throw snowballs,
 ride on the sledge,make footprints,catch the snowflakes
at the pool:towel,ring,float,ladder,ball,clock:swim across the pool,jump into the water,float on one side,
 splash a friend,learn to dive
at the fair:balloon,tent,drum,wheel,ticket,clown,pony,mask:ride on the big wheel,win a prize,eat some popcorn,
 watch the clown,buy a balloon
in the hospital:bed,nurse,doctor,bandage,chair,clock,card:visit a friend,talk to the nurse,wait for the doctor,
 draw a card"""

TOYS = """ball:kite:doll:drum:puzzle:train:teddy bear:robot:toy boat:yo-yo:rocket:truck:puppet:spinning top:scooter
whistle:toy car:toy castle:balloon:skipping rope:hoop:paper crown:music box:wooden horse:magic wand:toy plane"""
TREASURES = """key:ring:shell:coin:map:button:feather:hat:scarf:necklace:lantern:silver bell:notebook:red boot:bracelet
stone:blue marble:watch:glove:photograph:box of crayons:flute:umbrella:pocket mirror:library book:compass"""
COUNT_FOODS = """apple:banana:carrot:cookie:sandwich:pie:egg:orange:pear:cake:plum:potato:tomato:pancake:biscuit
melon:peach:lemon:muffin:cherry:strawberry:bean:onion:sausage:bun:grape"""
MASS_FOODS = "milk bread cheese soup rice honey jam water juice porridge butter pasta salad toast yogurt popcorn tea"
CLOTHES = """hat:coat:scarf:shirt:jumper:dress:raincoat:apron:cap:sock:boot:mitten:jacket:belt:vest:cardigan"""
PLANTS = """oak:rose:daisy:sunflower:tulip:pine tree:apple tree:bean plant:fern:tomato plant:willow:ivy plant:cactus"""

COLOURS = "red blue green yellow orange purple brown black white pink grey golden silver"
SIZES = "big small little tiny huge tall short long wide narrow enormous thin fat"
QUALITIES = """old new clean dirty soft hard shiny smooth heavy light warm cold wet dry round flat bright dark empty
broken noisy quiet pretty strange lovely plain useful sticky dusty striped wooden ordinary odd unusual"""
TRAITS = """kind brave clever shy curious cheerful gentle quiet careful funny helpful patient polite honest friendly
thoughtful lively stubborn hopeful playful generous sensible eager adventurous imaginative"""
GLAD = "happy glad proud excited pleased cheerful delighted thankful hopeful"
SAD = "sad upset worried lonely cross tired afraid disappointed nervous ashamed"
MANNER = "slowly quickly quietly carefully happily softly loudly gently bravely kindly suddenly eagerly neatly proudly"
INTRANSITIVE = """run:walk:jump:laugh:sing:sleep:dance:smile:wait:hide:cry:whistle:skip:hop:clap:shout
rest:wander:sneeze:yawn:nod:listen:work:dream:giggle:stretch:march:tiptoe:hum:wave:kneel down:sit down:look up"""
# Anything can be seen or talked about; only small things can be handled. The two lists keep sentences plausible.
PERCEIVING = """see:find:like:watch:paint:touch:look at:look for:point at:draw:need:talk about:ask about:admire:notice
remember:forget:think about:walk past:sit near:wait by:count:photograph:describe:visit:run past:stand beside:dream of"""
HANDLING = """carry:hold:drop:wash:hide:bring:take:keep:clean:mend:lift:choose:lose:pick up:put down:borrow:lend:buy
give away:hand over:wrap up:look after:find:want:share:pack:wave:show everyone:put away"""
PET_VERBS = """run away:jump:sleep:hide:rest:wander:stretch:sneeze:yawn:wait:play:look up:sit still:come closer:wake up
eat:drink:shiver:blink:scratch:roll over:creep:leap:peep out"""
PETS = "puppy kitten rabbit pony parrot hamster goldfish lamb duckling goat tortoise mouse hen"
NUMBER_WORDS = "two three four five six seven eight nine ten eleven twelve"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = "January February March April May June July August September October November December"
SEASONS = "spring summer autumn winter"
RHYMES = """cat hat mat bat rat;moon spoon balloon;tree bee sea knee flea;star car jar bar;tray bay sleigh
night light kite knight;bed bread shed thread;mouse house blouse;boat coat goat moat;hill mill windmill pill
king ring wing swing string;frog log dog bog;cake lake snake rake;town crown clown gown;bear chair pear stair
nose rose hose;train lane drain crane;sky pie fly;dish fish;hen pen den;wall ball hall stall;crow bow snow toe
queen bean screen;book cook brook hook;door floor shore drawer;clock sock rock block;pool school stool mule
bell shell well;gate plate crate;nest chest vest;ship chip whip;tail snail whale pail;sheep jeep heap
stone bone throne cone;duck truck;mitten kitten;table stable;fountain mountain;honey bunny"""


def noun(name: str, mass: bool = False) -> Word:
    """Return a noun with its plural, determiner, pronouns and the verbs that agree with it."""
    return {
        "": name,
        "pl": name if mass else plural(name),
        "det": "some" if mass else "a~",
        "a": f"some {name}" if mass else f"a~ {name}",
        "it": "it",
        "one": "some" if mass else "one",
        "many": "much" if mass else "many",
    }


def plural(name: str) -> str:
    """Return the plural of a noun; in a phrase ("box of crayons") the head is inflected."""
    head, of, rest = name.partition(" of ")
    before, space, last = head.rpartition(" ")
    if last in IRREGULAR_PLURALS:
        last = IRREGULAR_PLURALS[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return before + space + last + of + rest


def verb(phrase: str) -> Word:
    """Return a verb phrase in all its forms; the first word carries the inflection.

    Forms: "" plain, p present plural, s present singular, d past singular, dp past plural, n participle, g -ing.
    """
    base, space, rest = phrase.partition(" ")
    past, participle = IRREGULAR_VERBS.get(base, (_regular_past(base),) * 2)
    forms = {"": base, "p": base, "s": _third_person(base), "d": past, "dp": past, "n": participle, "g": _ing(base)}
    if base == "be":
        forms |= {"p": "are", "s": "is", "dp": "were"}
    return {name: form + space + rest for name, form in forms.items()}


def _regular_past(base: str) -> str:
    if base in DOUBLING:
        return base + base[-1] + "ed"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ied"
    return base + ("d" if base.endswith("e") else "ed")


def _third_person(base: str) -> str:
    if base == "have":
        return "has"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + ("es" if base.endswith(("s", "x", "z", "ch", "sh", "go", "do")) else "s")


def _ing(base: str) -> str:
    if base in DOUBLING:
        return base + base[-1] + "ing"
    if base.endswith("ie"):
        return base[:-2] + "ying"
    if base.endswith("e") and not base.endswith(("ee", "oe")) and base != "be":
        return base[:-1] + "ing"
    return base + "ing"


def person(name: str, male: bool) -> Word:
    """Return a person with the pronouns that refer to them."""
    he = ("he", "him", "his", "himself", "boy")
    she = ("she", "her", "her", "herself", "girl")
    roles = ("he", "him", "his", "himself", "kind")
    return {"": name, **dict(zip(roles, he if male else she, strict=True))}


def animal(row: str) -> Word:
    """Return an animal with all columns of its table."""
    name, *facts = row.split(":")
    columns = ("young", "home", "food", "sound", "ability", "body", "class")
    word = {**noun(name), **dict(zip(columns, facts, strict=True))}
    return {**word, "youngs": plural(word["young"]), "sounds": verb(word["sound"])["s"]}


def object_(row: str) -> Word:
    """Return a man-made thing with its kind, use and material."""
    name, kind, use, material = row.split(":")
    return {**noun(name), "kind": kind, "use": use, "using": verb(use)["g"], "material": material}


def place(row: str) -> tuple[Word, list[Word], list[Word]]:
    """Return a place (with and without its preposition), the things in it and the actions there."""
    where, things, actions = row.split(":")
    word = {"": where, "the": where.split(" ", 1)[1], "to": "to " + where.split(" ", 1)[1]}
    return word, [noun(thing) for thing in things.split(",")], [verb(action) for action in actions.split(",")]


def _rows(table: str, separator: str = ":") -> list[str]:
    return [row for line in table.split("\n") for row in line.split(separator)]


def _words(text: str) -> list[Word]:
    return [{"": word} for word in text.split()]


def _adjectives(text: str) -> list[Word]:
    return [{"": word, "er": _comparative(word)} for word in text.split()]


def _comparative(word: str) -> str:
    if len(word) > 6 or word.endswith(("en", "ed", "ful")):
        return "more " + word
    if word.endswith("y"):
        return word[:-1] + "ier"
    if word in ("big", "wet", "fat", "sad", "hot", "flat", "thin", "red"):
        return word + word[-1] + "er"
    return word + ("r" if word.endswith("e") else "er")


@cache
def places() -> list[tuple[Word, list[Word], list[Word]]]:
    """Return each place with its things and its actions."""
    return [place(row) for row in PLACES.replace("\n ", "").split("\n")]


@cache
def rhyme_families() -> list[list[str]]:
    """Return lists of words that rhyme with one another."""
    return [family.split() for family in _rows(RHYMES, ";")]


@cache
def word_lists() -> dict[str, list[Word]]:
    """Return every word list by its name in the grammars."""
    boys = [person(name, male=True) for name in BOYS.split()]
    girls = [person(name, male=False) for name in GIRLS.split()]
    count_foods = [noun(name) for name in _rows(COUNT_FOODS)]
    mass_foods = [noun(name, mass=True) for name in MASS_FOODS.split()]
    adults = [person(name, name in MEN) for name in f"{MEN};{WOMEN}".split(";")]
    return {
        "boy": boys,
        "girl": girls,
        "child": boys + girls,
        "adult": adults,
        "family": [person(name, name in ("Dad", "Grandpa", "Daddy")) for name in FAMILY.split(";")],
        "job": [{**noun(row.split(":")[0]), "does": row.split(":")[1]} for row in _rows(JOBS, ";")],
        "animal": [animal(row) for row in ANIMALS.split("\n")],
        "object": [object_(row) for row in _rows(OBJECTS, ";")],
        "toy": [noun(name) for name in _rows(TOYS)],
        "treasure": [noun(name) for name in _rows(TREASURES)],
        "count_food": count_foods,
        "food": count_foods + mass_foods,
        "clothing": [noun(name) for name in _rows(CLOTHES)],
        "plant": [noun(name) for name in _rows(PLANTS)],
        "pet": [noun(name) for name in PETS.split()],
        "vi": [verb(name) for name in _rows(INTRANSITIVE)],
        "vt": [verb(name) for name in _rows(PERCEIVING)],
        "handle": [verb(name) for name in _rows(HANDLING)],
        "pet_vi": [verb(name) for name in _rows(PET_VERBS)],
        "item": [noun(name) for name in _rows(f"{TOYS}\n{TREASURES}\n{CLOTHES}")] + count_foods,
        "be": [verb("be")],
        "have": [verb("have")],
        "do": [verb("do")],
        "go": [verb("go")],
        "colour": _adjectives(COLOURS),
        "size": _adjectives(SIZES),
        "quality": _adjectives(QUALITIES),
        "trait": _adjectives(TRAITS),
        "glad": _adjectives(GLAD),
        "sad": _adjectives(SAD),
        "manner": _words(MANNER),
        "few": _words(NUMBER_WORDS),
        "day": _words(DAYS),
        "month": _words(MONTHS),
        "season": _words(SEASONS),
        "place": [word for word, _, _ in places()],
    }
