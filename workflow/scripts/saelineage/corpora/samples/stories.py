"""Short stories for small children: a hero, a place, a wish, an obstacle, attempts, help, an ending and a moral."""

from functools import cache
from random import Random
from typing import NamedTuple

from saelineage.corpora.samples.grammar import Rule, Word, Writer, curl_quotes, parse_rules, settle_articles
from saelineage.corpora.samples.lexicon import person, places, word_lists

MIN_WORDS, MAX_WORDS = 80, 350
CREATURES = (
    "mouse", "rabbit", "fox", "bear", "hedgehog", "owl", "squirrel", "duck", "cat", "puppy", "frog", "mole",
    "badger", "turtle", "elephant",
)  # fmt: skip
CREATURE_NAMES = (
    "Pip", "Nib", "Bramble", "Dot", "Hazel", "Moss", "Puff", "Biscuit", "Clover", "Tuck", "Pebble", "Fig",
    "Button", "Rusty", "Willow", "Bean",
)  # fmt: skip

TREATS: list[Word] = [{"": "milk"}, {"": "bread"}, {"": "water"}, {"": "soup"}, {"": "porridge"}]
"""Food for a creature in need."""


class Plot(NamedTuple):
    """A kind of story: its beats in order, and the rules that only it uses."""

    beats: str
    """Names of rules; one with "?" is left out half of the time, and one with "*" is written one to three times."""
    rules: str


COMMON = """
opening:
    Once upon a time, there was a~ {trait} {hero.kind} named {hero}. [{^hero.he} lived near {home}.|{^hero.he} lived
        with {adult} and {few} {pet.pl}.]
    One [day|morning|afternoon], a~ {trait} {hero.kind} called {hero} was {place}. [{^hero.he} loved to {act}.|The
        {thing} there was {quality}.]
    {hero} was a~ {hero.kind} who loved to {act}. Every {day}, {hero.he} went {place.to}[ with {friend}|].
    There once was a~ {trait} {hero.kind}. {^hero.his} name was {hero}, and {hero.his} best friend was {friend}.
    {hero} and {friend} were good friends. {hero} was {trait}, and {friend} was {trait2}.
    It was a~ {weather} {day}, and {hero} was {glad}. {^hero.he} was going to {act} {place}.
    In a~ {size} house near {home} lived a~ {trait} {hero.kind}. Everyone called {hero.him} {hero}.
    Long ago, near {home}, there lived a~ {hero.kind} named {hero} who was very {trait}.
    "Wake up, {hero}!" said {adult}. It was {day}, and they were going {place.to}.
home:
    [the|an old|a big|a small|a quiet|a green] {river}
river:
    [river|hill|wood|lake|bridge|mill|garden|road]
weather:
    [sunny|rainy|windy|cold|bright|foggy|snowy|warm|grey|lovely]
setting:
    The {thing} was {quality}, and the {thing} was {colour}. {hero} liked to look at them.
    [The sun was shining|The birds were singing|The wind was blowing|Rain was falling], and the {thing} looked
        {quality}.
    There were {few} {thing.pl} {place}, and {hero} [counted|knew|liked] all of them.
    It was [quiet|busy|{weather}] {place}. {friend} was {act.g}, and {adult} was [resting|{vi.g}|watching].
    {hero} wore {hero.his} {colour} {clothing} because it was {weather}.
    First {hero} and {friend} {act.dp}. Then they {vi.dp} and {vi.dp} until they were tired.
    "Can we {act}?" asked {hero}. "Yes," said {adult}, "but stay near the {thing}."
felt_sad:
    {hero} felt [very |so |]{sad}.
    {hero} sat down [next to|near|behind] the {thing} and began to cry.
    [Tears came to {hero.his} eyes.|{^hero.he} did not want to {act} any more.] {^hero.he} was {sad}.
    "Oh no!" [said|cried] {hero}. "[What will I do now?|This is not good.|I am so {sad}.]"
    {^hero.he} felt {sad}, and {hero.his} tummy hurt.
    {hero} looked at the ground. [A tear fell on the {thing}.|{^hero.he} could not smile.]
    {hero} wanted to go home. {^hero.he} was too {sad} to {vi}.
comfort:
    {adult} gave {hero.him} a hug. "[Don't worry|It will be all right|I am here], {hero}," {adult.he} said.
    "Why are you {sad}?" asked {friend}. {hero} told {friend.him} everything.
    {friend} sat down beside {hero.him}. "[I can help|We can think together|You are not alone]," said {friend}.
    {adult} listened [and nodded|to every word]. "[Everyone feels {sad} sometimes|Take a big breath|Let us think],"
        said {adult}.
    "{^hero}, [look at me|come here]," said {adult}. "[You are {trait}|You can do it|We will find a way]."
felt_glad:
    {hero} was {glad}. {^hero.he} [laughed|smiled|jumped up and down|clapped {hero.his} hands].
    {hero} and {friend} [laughed|danced|hugged|cheered]. They were so {glad}.
    "[Hooray|Yes|We did it]!" [cried|shouted] {hero}. {friend} [clapped|smiled|jumped for joy].
    A big smile came to {hero.his} face. {^hero.he} felt {glad}.
    {hero} felt {glad} and warm inside[, like a cup of hot milk|, like the sun after rain|].
    {adult} smiled too. "I am {glad} for you, {hero}," said {adult}.
ending:
    Then they all went home and ate {food.a} [and {food.a}|together|by the fire].
    That night, {hero} [slept well|dreamed about the {thing}|told {adult} all about it].
    After that, {hero} and {friend} [went {place.to} every {day}|were best friends|always {act.dp} together].
    And from that day on, {hero} was [always {trait2}|never {sad} {place} again|a little more {trait2}].
    The sun went down, and {hero} [said goodnight|waved goodbye|walked home] [to {friend}|with {adult}].
    "[What a day|That was fun|I will never forget this]!" said {hero}, and {hero.he} [yawned|smiled|fell asleep].
    They lived happily near {home}, and {hero} told the story again and again.
    When {hero} woke up the next day, the first thing {hero.he} did was to {act} with {friend}.
next:
    [Then|Next|After that|Soon|A little later|At last|Just then|Suddenly]
"""

PLOTS = {
    "lost": Plot(
        "opening has_treasure setting? loses felt_sad comfort? searches* helper_finds thanks felt_glad ending "
        "lost_moral",
        """
has_treasure:
    {^hero.he} had a~ {adjective} {item}. {adult} had given it to {hero.him}.
    {hero} had a~ {item} that was {quality} and {colour}. {^hero.he} took the {item} everywhere.
    {^hero.his} favourite thing was a~ {colour} {item}. It was a gift from {adult}.
loses:
    But when {hero} came home, the {item} was not in {hero.his} [bag|pocket|hand].
    One {day}, {hero} could not find the {item}. {^hero.he} had left it [near|under|behind] the {thing}, but it was
        gone.
    Then the wind blew, and the {item} [fell|rolled|flew] away. {hero} did not see where it went.
    {hero} put the {item} down to {act}. When {hero.he} looked again, it was gone.
searches:
    {hero} looked [under|behind|inside|next to] the {thing}. [It was not there.|There was only {food.a}.|No {item}!]
    "Have you seen my {item}?" {hero} asked {adult2}. "[No, I have not|It is not here|Ask {friend}]," said {adult2}.
    {friend} helped {hero.him} look. They looked near the {thing} and [under|behind] the {thing}, but they found only
        {few} {thing.pl}.
    {next}, {hero} walked back past the {thing}. {^hero.he} looked [left and right|up and down], but there was nothing.
    A~ {pet} was sitting by the {thing}. {hero} thought it had the {item}, but it was only [chewing a leaf|playing
        with a~ {colour} sock].
helper_finds:
    {next}, {friend} shouted, "Look! [I see something {colour2}|What is that] [under|behind|near] the {thing}!" It was
        the {item}!
    {next}, a~ {size} {pet} came with something in its mouth. It was the {item}!
    {adult2} held up the {item}. "[Is this yours|Did you lose this], {hero}?" {adult2.he} asked. "[It was under the
        {thing}|A~ {pet} had it]."
    {hero} closed {hero.his} eyes and thought. "I know!" {hero.he} said. {^hero.he} ran to the {thing}, and there was
        the {item}.
lost_moral:
    {hero} learned to take care of {hero.his} things.
    {hero} never left the {item} [outside|near the {thing}|alone] again.
    Now {hero} knew that friends help each other look.
""",
    ),
    "share": Plot(
        "opening setting? has_treat wants_some refuses felt_lonely thinks shares felt_glad ending? share_moral",
        """
has_treat:
    {adult} gave {hero} a~ {adjective} {item}. It was the best {item} {hero.he} had ever seen.
    {hero} found a~ {adjective} {item} near the {thing}. "[This is mine|I will keep it]," {hero.he} said.
    {hero} got a~ {item} for {hero.his} birthday. {^hero.he} [hugged|kissed|held] it.
wants_some:
    {friend} came and saw the {item}. "[Can I play with it too|May I have a turn|Will you share it with me], please?"
        {friend.he} asked.
    "What a~ {quality} {item}!" said {friend}. "[Can I hold it|Could we use it together]?"
refuses:
    "No!" said {hero}. "[It is mine|You will break it|Get your own {item}]." {friend} [walked away|looked at the
        ground|began to cry].
    {hero} hid the {item} behind {hero.him}. "[No|Not today]," {hero.he} said. {friend} felt {sad} and went [home|to
        the {thing}].
felt_lonely:
    {hero} played with the {item} alone. After a while, it was [no fun|boring|not so {quality} any more].
    {hero} looked at the {item}, and then at {friend}, who was {act.g} alone. {^hero.he} felt {sad}.
    Nobody wanted to {act} with {hero}. The {item} could not [laugh|talk|run] with {hero.him}.
thinks:
    {hero} asked {adult}, "Why am I {sad}? I have my {item}." {adult} said, "[A~ {item} is more fun with a friend|Good
        things grow when we share them]."
    {adult} said, "When I was little, I had a~ {item} too. I shared it with {adult2}, and we are still friends."
    {hero} remembered that {friend} had once shared {food.a} with {hero.him}.
shares:
    {hero} ran to {friend}. "I am sorry," said {hero}. "[You can have the first turn|Let us use the {item}
        together|Here, you hold it]."
    "{friend}, wait!" called {hero}. "[Please play with me|We can share]." {friend} smiled and took the {item}.
share_moral:
    {hero} learned that sharing makes everyone {glad}.
    The {item} was still {quality}, but having a friend was better.
    And the next {day}, {friend} shared {friend.his} {toy} with {hero}.
""",
    ),
    "fear": Plot(
        "opening setting? afraid_of must felt_sad? comfort tries_small* does_it felt_glad ending fear_moral",
        """
afraid_of:
    There was one thing that {hero} did not like: {fear}. It made {hero.him} [shake|hide|cry].
    But {hero} was afraid of {fear}. {^hero.he} always [hid behind the {thing}|ran to {adult}|closed {hero.his} eyes].
must:
    One {day}, {friend} needed help, and {hero} had to face {fear}.
    "[Come on|Hurry], {hero}!" called {friend}. But {hero.he} could not move. {next}, {hero.he} thought of {fear}.
    That {day}, the {item} was left outside, and {hero} had to think about {fear} to get it back.
tries_small:
    {hero} took [one|a~ {size}] step. [It was not so bad.|{^hero.his} heart went boom, boom, boom.|Then {hero.he} took
        another.]
    {hero} held {hero.his} {item} and counted to {few}. [Nothing happened.|{^hero.he} felt a little braver.]
    "I can do it," said {hero} [quietly|to the {item}|to {friend}]. {^hero.he} [tried once|tried again], but {hero.he}
        [ran back|stopped].
    {friend} said, "[I was afraid of {fear2} once|Hold my hand|We can sing]." So they [sang|walked on|counted] together.
does_it:
    {next}, {hero} opened {hero.his} eyes. {fear_end} {^hero.he} had done it!
    {hero} was still {sad}, but {hero.he} did not stop. {fear_end}
fear_moral:
    {hero} learned that being brave means trying when you are afraid.
    "[You were very brave|I am proud of you]," said {adult}. {hero} thought so too.
    Now, when {friend} is afraid of {fear2}, {hero} holds {friend.his} hand.
""",
    ),
    "make": Plot(
        "opening wants_make gathers setting? first_try felt_sad? comfort second_try* works felt_glad ending make_moral",
        """
wants_make:
    One {day}, {hero} wanted to make a~ {adjective} {item} for {adult}. It was {adult.his} birthday soon.
    "I want to make a~ {item}," said {hero}. "A~ {colour} one!" "[That is hard|What a good idea]," said {friend}.
    {hero} saw a~ {adjective} {item} in a shop, but it cost {few} coins. "I will make my own," {hero.he} said.
gathers:
    {^hero.he} found [some string|an old box|some paper] and {few} {colour} {thing.pl}. {friend} brought glue and paint.
    They asked {adult2} for wood and nails. {adult2} gave them {few} of each[, and {food.a} too|].
first_try:
    {hero} worked all [morning|afternoon], but the {item} [fell apart|was too {size}|did not look right|broke].
    First {hero} made the top, and then {hero.he} made the sides. But when {friend} touched it, crash! The {item} broke.
second_try:
    {hero} tried again. [This time it was {quality}, but too {size}.|{^hero.he} went slowly.|{^hero.he} used more glue.]
    {friend} had an idea. "[Put the {thing} under it|Use the {colour} paint|Tie it with string]!" {friend.he} said. So
        {hero} did.
    "Not yet," said {hero}. {^hero.he} [cut|painted|fixed] the {size} part and [waited|looked at it].
works:
    At last the {item} was ready. It was {quality} and {colour2}, and it did not break.
    {hero} held up the {item}. It was not perfect, but it was [{hero.his} own|made with love|{adjective}].
make_moral:
    "You did not give up," said {adult}. "That is the best part."
    {hero} learned that good things take time.
    And if you visit {hero}, you can still see the {item} next to the {thing}.
""",
    ),
    "trip": Plot(
        "trip_opening pack setting travel* surprise_on_way felt_sad? comfort? solve_trip felt_glad trip_end ending",
        """
trip_opening:
    {hero} was a~ {trait} {hero.kind}. One {day}, {adult} said, "Today we are going {place.to}!" {hero} was {glad}.
    {hero} had never been {place.to} before. "When can we go?" {hero.he} asked {adult} every {day}.
    It was a~ {weather} {day}. {hero}, {friend} and {adult} got ready to go {place.to}.
pack:
    {hero} packed a~ {item}, {few} {count_food.pl} and a~ {colour} {clothing}.
    "Don't forget the {item}," said {adult}. {hero} put it in {hero.his} bag with {food.a}.
travel:
    They [walked|rode|drove] past a~ {adjective} {home_thing} and {few} {animal.pl}. [{hero} waved.|"Look!" said
        {friend}.|It was a long way.]
    "Are we there yet?" asked {hero}. "[Not yet|Soon|Only {few} more miles]," said {adult}.
    On the way they sang a song about a~ {trait} {animal}. {friend} sang {manner}.
    They stopped to eat {food.a}. A~ {pet} came and looked at them, so {hero} gave it a bit.
home_thing:
    [house|mill|church|field|bridge|tower|shop|hill]
surprise_on_way:
    But then the [car|bus|cart|bicycle] stopped. [A wheel was broken.|It would not go.|There was a tree on the road.]
    Suddenly, it began to [rain|snow], and they could not see the road.
    {next}, {hero} looked around. {^hero.he} could not see {adult}! {^hero.he} had walked the wrong way.
solve_trip:
    A~ {trait} {job} came by. "[I can help you|Follow me|Hold on]," said the {job}. Soon everything was all right.
    {hero} had an idea. "We can use the {item}!" {hero.he} said. It worked, and they went on.
    {hero} remembered what {adult} always said: stay by the {thing} and wait. So {hero.he} did, and soon {adult} came.
trip_end:
    When they came home, {hero} put a~ {thing} on the shelf, to remember the day.
    {hero} [saw|drew|counted] {few} {thing.pl} that day, and {hero.he} {act.d} with {friend}.
    "The best part was [the {thing}|when we {act.dp}|the song]," said {hero}.
""",
    ),
    "quarrel": Plot(
        "opening both_friends setting? quarrel felt_sad each_alone* comfort makes_up felt_glad ending quarrel_moral",
        """
both_friends:
    {hero} and {friend} did everything together. They {act.dp}, and they {vi.dp} in the {weather} weather.
    Every {day}, {friend} came to {act} with {hero}.
quarrel:
    One {day}, they both wanted the {colour} {item}. "I had it first!" said {hero}. "No, I did!" said {friend}. They
        pulled, and it broke.
    "Let us {act}," said {hero}. "No," said {friend}, "I want to {vi}." They [shouted|stamped their feet|turned away],
        and {friend} went home.
    {friend} said that {hero.his} {item} was {quality}. {hero} was cross. "Then I will not be your friend," {hero.he}
        said.
each_alone:
    {hero} tried to {act} alone, but it was [too quiet|no fun|not the same].
    At home, {friend} looked out of the window. {^friend.he} was {sad} too.
    {next}, {hero} saw a~ {adjective} {thing}. {^hero.he} turned to tell {friend}, but nobody was there.
makes_up:
    {hero} went to {friend} with {food.a}. "I am sorry that I was cross," said {hero}. "I am sorry too," said {friend}.
    {hero} drew a picture of the two of them and put it under {friend.his} door. Soon {friend} came out with a smile.
    They met by the {thing}. Both of them said "Sorry!" at the same time, and then they laughed.
quarrel_moral:
    They learned that a friend is more important than a~ {item}.
    Now, when they both want the {item}, they take turns.
    Saying sorry is hard, but it is worth it.
""",
    ),
    "animal": Plot(
        "opening setting? finds_animal what_wrong tries_help* asks_expert heals felt_glad animal_back ending?",
        """
finds_animal:
    {next}, {hero} heard a~ {quiet} sound near the {thing}. It was a~ {size} {creature}.
    While {hero} was {act.g}, {hero.he} saw a~ {colour} {creature} under the {thing}. It did not move.
quiet:
    [soft|sad|small|strange|tiny]
what_wrong:
    The {creature} had a hurt leg. It looked at {hero} with {size} eyes. {hero} felt {sad} for it.
    The {creature} was [cold and wet|hungry and thin|stuck in a net]. "Poor little {creature}!" said {hero}.
    The {creature} was lost. It wanted its mother, but she was far away.
tries_help:
    {hero} gave the {creature} some {creature_food}, [and it ate a little|but it did not eat|and it looked up].
    {hero} put {hero.his} {clothing} around the {creature}. [It was warm now.|It stopped shaking.]
    {friend} brought a~ {item} to make the {creature} happy. [It looked at it for a long time.|The {creature} sniffed
        it.]
    "Don't be afraid," said {hero} {manner}. {^hero.he} sat very still until the {creature} came closer.
asks_expert:
    {hero} carried the {creature} to {adult2}. "[Keep it warm|It needs to rest for {few} days|You did the right
        thing]," said {adult2}.
    {hero} and {friend} ran to get {adult}. {adult} looked at the {creature} and said, "[We can help it|It will get
        better]."
heals:
    After {few} days, the {creature} could [run|play|jump] again. It [licked|followed|looked at] {hero}.
    Every {day}, {hero} looked after the {creature}. Soon it was strong and {glad}.
animal_back:
    One {day}, it was time to say goodbye. The {creature} looked back once, and then it ran [home|to its mother|into
        the wood].
    The {creature} stayed with {hero}, and {hero.he} called it {pet_name}. {pet_name} slept next to the {thing}.
    {hero} learned that even small help is big for someone small.
""",
    ),
    "surprise": Plot(
        "opening strange_day setting? all_busy* felt_sad follows_clue* surprise felt_glad ending surprise_moral",
        """
strange_day:
    It was {hero.his} birthday, but nobody said anything. {adult} only said, "Good morning," and went away.
    One {day}, {hero} saw {friend} whisper to {adult}. When {hero} came near, they stopped.
all_busy:
    {hero} asked {friend}, "Do you want to {act}?" "[Not now|I am busy|Maybe later]," said {friend}, and {friend.he}
        hid a~ {item}.
    {hero} went to {adult2}, but {adult2} was {act.g} and did not look up.
    Everyone was carrying {thing.pl} and {count_food.pl}. "What are you doing?" asked {hero}. "[Nothing|Oh, just
        working]," they said.
follows_clue:
    {next}, {hero} found a~ {colour} [paper|ribbon|card] on the {thing}. It said, "Look [under|behind] the {thing}."
    There were {few} {colour} footprints near the {thing}. {hero} followed them.
    Behind the {thing}, {hero} found a~ {size} box. In the box was a~ {toy} and a note: "Come {place.to}!"
surprise:
    {hero} opened the door. "Surprise!" shouted {friend}, {adult} and {adult2}. There was a~ {adjective} cake with
        {few} candles.
    And there stood {friend} with a~ {colour} {item}. "[This is for you|We made it for you], {hero}!" said {friend}.
surprise_moral:
    {hero} had thought that they forgot, but they had been thinking of {hero.him} all the time.
    "[I will surprise you next time|Thank you for everything]," said {hero}.
""",
    ),
    "mistake": Plot(
        "opening setting? warned breaks_it hides_it felt_sad asks_who comfort? tells_truth forgives ending "
        "mistake_moral",
        """
warned:
    {adult} had a~ {adjective} {item}. "Please be careful with it, {hero}," {adult.he} said.
    {adult2} put a~ {quality} {item} on the {thing}. "Do not [touch|play with] it," said {adult2} to {hero} and
        {friend}.
breaks_it:
    But {hero} wanted to {vi} like {friend}. {^hero.he} {vi.d} too fast and hit the {item}. Crash!
    When nobody was looking, {hero} picked up the {item}. It was {quality}, and it fell. Now it was in {few} pieces.
hides_it:
    {hero} hid the {item} [under|behind|inside] the {thing}. "[Nobody will know|I will not tell]," {hero.he} thought.
    {hero} put a~ {colour} {clothing} over the {item} and walked away {manner}.
asks_who:
    Later, {adult} asked, "Where is the {item}?" {friend} looked at {hero}. {hero} looked at {hero.his} feet.
    "Who broke the {item}?" asked {adult}. "[Was it the {pet}|Was it you, {friend}]?" Nobody said a word.
tells_truth:
    "It was me," said {hero}. "I broke the {item}, and I hid it. I am very sorry."
    {hero} could not sleep. {^hero.he} went to {adult} and told {adult.him} everything about the {item}.
forgives:
    {adult} was quiet. Then {adult.he} said, "I am {sad} about the {item}, but I am {glad} that you told me." They
        mended it with glue.
    "Thank you for telling the truth," said {adult}. {hero} helped to {act} for {few} days to make up for it.
mistake_moral:
    {hero} learned that it is always better to tell the truth.
    The {item} still had a~ {size} crack, but {hero} felt {glad} every time {hero.he} saw it.
    Everyone makes mistakes, and {friend} said so too.
""",
    ),
    "contest": Plot(
        "opening setting? contest_news practice* contest_day loses_or_wins felt_glad contest_moral ending",
        """
contest_news:
    There was going to be a contest {place}. The best at {act.g} would win a~ {adjective} {item}.
    "On {day} there is a race," said {friend}. "The prize is a~ {adjective} {item}!" {hero} wanted to win it.
practice:
    Every day {hero} got up early to practise. {^hero.he} ran to the {thing} and back {few} times.
    {hero} fell down and hurt {hero.his} [knee|arm|nose]. "[Try again|Go slowly]," said {adult}.
    {friend} was very fast. {hero} was {sad} because {hero.he} was slow, but {hero.he} did not stop.
contest_day:
    On the day, {hero} wore {hero.his} {colour} {clothing}. Everyone was there: {adult}, {adult2} and {few} {animal.pl}.
    "Ready, steady, go!" shouted {adult2}. {hero} went as fast as {hero.he} could.
loses_or_wins:
    Near the end, {friend} fell. {hero} could win now, but {hero.he} stopped and helped {friend} up. They came last,
        together. Everyone clapped.
    {hero} came first! {^hero.he} took the {item}, and then {hero.he} gave it to {friend}, who had helped {hero.him}
        so much.
    {friend} won the {item}. {hero} was {sad} for a minute. Then {hero.he} said, "Well done, {friend}! You were great."
contest_moral:
    "You are the real winner," said {adult}.
    {hero} learned that trying your best feels good.
    Winning is nice, but being {trait} is nicer.
""",
    ),
    "wish": Plot(
        "opening magic_thing wish_made wish_wrong* felt_sad comfort? unwish felt_glad ending wish_moral",
        """
magic_thing:
    {next}, {hero} found a~ {adjective} {item} under the {thing}. It began to talk! "You have one wish," said the
        {item}.
    A~ [little|very old|tiny|grey|strange] {creature} said to {hero}, "You are {trait}, so I will give you a wish."
        {hero} could not believe it.
wish_made:
    "I wish that everything was {colour2}!" said {hero}. And whoosh! The {thing} was {colour2}, and so was {adult}.
    "I wish for {few} hundred {count_food.pl}," said {hero}. Pop, pop, pop! They fell from the sky.
    "I wish that I was very {big}," said {hero}. And {hero.he} was.
big:
    [big|small|tall|tiny]
wish_wrong:
    At first it was fun. But soon {friend} [could not find {friend.his} {clothing}|was afraid|went away].
    {hero} wanted to {act}, but now {hero.he} could not do it.
    "[I don't like this|Please stop it]," said {adult2}. The {pet} hid under the {thing}.
unwish:
    "I wish that everything was as before," said {hero}. [One, two, three|Whoosh|In a blink], and it was.
    {hero} gave back the {item} and said, "I don't need a wish." Slowly, everything was the same again.
wish_moral:
    {hero} learned to be {glad} with what {hero.he} had.
    "Be careful what you wish for," said {adult}, and {hero} laughed.
""",
    ),
}

FEARS = (
    ("the dark", "It was only the {thing}, and there were {few} stars in the window."),
    ("deep water", "The water was warm, and {hero.he} could float."),
    ("loud storms", "The thunder was far away now, and the rain sounded like a song."),
    ("the big dog next door", "The dog wagged its tail and licked {hero.his} hand."),
    ("high places", "From the top, the {thing} looked as small as a~ {count_food}."),
    ("speaking to new people", '"Hello," said a~ {trait} girl. "Do you want to {act}?"'),
    ("spiders", "The spider was tiny, and it was more afraid than {hero.he} was."),
    ("going to the doctor", "The doctor was {trait}, and it did not hurt at all."),
    ("the old house", "Inside there was only {adult2}, who gave {hero.him} {food.a}."),
    ("riding a bicycle", "The wheels went round and round, and {hero.he} did not fall."),
)
"""Fears, each with its happy ending."""

THANKS = """
thanks:
    "Thank you, {friend}!" said {hero}. "[You are welcome|That is what friends do|I am {glad} that I could help],"
        said {friend}.
    {hero} said thank you and gave {friend} a~ {count_food}.
    "How can I thank you?" asked {hero}. "[Just be my friend|Let us {act}|You don't have to]," said {friend}.
adjective:
    {size} {colour}
    {quality}
    {size}
    {colour}
    {size}, {quality}
    {quality} {colour}
"""


@cache
def rules() -> dict[str, Rule | list[Word]]:
    """Return the rules of all the plots, with the word lists."""
    text = COMMON + THANKS + "".join([plot.rules for plot in PLOTS.values()])
    return parse_rules(text) | word_lists()


@cache
def fear_endings() -> list[Rule]:
    """Return a rule for each ending, in the order of `FEARS`."""
    return [parse_rules(f"end:\n    {end}")["end"] for _, end in FEARS]


def document(rng: Random) -> str:
    """Write one story of 80 to 350 words."""
    while True:
        writer = Writer(rules(), rng)
        _cast(writer)
        text = settle_articles(_tell(writer, writer.pick(tuple(PLOTS.values()))))
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            return curl_quotes(text) if writer.chance(0.06) else text


def _cast(writer: Writer) -> None:
    """Choose the characters, place and things of the story, and bind them until its end."""
    where, things, actions = writer.pick(places())
    creatures = writer.chance(0.25)
    fear, fear2 = writer.sample(range(len(FEARS)), 2)
    trait2, colour2 = writer.pick(writer.words("trait")), writer.pick(writer.words("colour"))
    creature, pet = writer.sample(writer.words("pet"), 2)
    adult, adult2 = writer.sample(writer.words("adult"), 2)
    writer.bind(place=where, thing=writer.sample(things, 4), act=writer.sample(actions, 3))
    hero = _character(writer, creatures)
    writer.bind(hero=hero, friend=_character(writer, creatures, unlike=hero))
    writer.bind(adult=adult, adult2=adult2, pet=pet, creature=creature, creature_food=writer.fresh(TREATS))
    writer.bind(item=writer.fresh(writer.words("toy") + writer.words("treasure")), trait2=trait2, colour2=colour2)
    writer.bind(fear=FEARS[fear][0], fear2=FEARS[fear2][0], fear_end=fear_endings()[fear])
    writer.bind(pet_name=writer.pick(CREATURE_NAMES), clothing=writer.fresh(writer.words("clothing")))


def _character(writer: Writer, creature: bool, unlike: Word | None = None) -> Word:
    """Return a child, or an animal that talks, with a name different from that of `unlike`."""
    while True:
        word = writer.pick(writer.words("child"))
        if creature:
            name, male = writer.pick(CREATURE_NAMES), writer.chance(0.5)
            word = {**person(name, male), "kind": writer.pick(CREATURES)}
        if unlike is None or word[""] != unlike[""]:
            return word


def _tell(writer: Writer, plot: Plot) -> str:
    """Write the beats of a plot in order, in one or several paragraphs."""
    sentences = []
    for beat in plot.beats.split():
        name = beat.rstrip("?*")
        if beat.endswith("?") and writer.chance(0.5):
            continue
        repeats = writer.number(1, 3) if beat.endswith("*") else 1
        sentences += [writer.write(name) for _ in range(repeats)]
    breaks = writer.pick([0.0, 0.25, 0.4])
    return "".join([text + ("\n\n" if writer.chance(breaks) else " ") for text in sentences]).strip() + "\n"
