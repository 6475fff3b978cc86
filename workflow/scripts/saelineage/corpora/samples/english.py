"""English by and for children: talk at home, simple facts, letters, instructions, quizzes, sums, rhymes, diaries."""

from functools import cache
from random import Random

from saelineage.corpora.samples.grammar import Rule, Word, Writer, curl_quotes, parse_rules, settle_articles
from saelineage.corpora.samples.lexicon import places, rhyme_families, word_lists

# Sentences shared by several genres. Word forms are inherited: {vp.d} puts every verb in it in the past tense.
SENTENCES = """
adjective:
    {size}
    {colour}
    {quality}
    {quality}
    {size} {colour}
    very {quality}
    {size}, {quality}
    {quality} {colour}
    [rather|very|really] {quality}
some_thing:
    a~ {thing}
    a~ {adjective} {thing}
    a~ {adjective} {thing} {rel_thing}
    the {thing}
    the {adjective} {thing}
    the {thing} {rel_thing}
    {few} {thing.pl}
    {few} {quality} {thing.pl}
    [some|a few] {colour} {thing.pl}
    one {thing} and {few} {thing.pl}
some_item:
    a~ {item}
    the {quality} {item}
    the {item} {rel_item}
    a~ {adjective} {item}
    {few} {item.pl}
    a~ {item} and a~ {adjective} {item}
    [{child}'s|{adult}'s] {item}
    some {quality} {item.pl}
rel_item:
    that [had|did not have] a~ {quality} [side|smell|top]
    that [looked|felt|seemed] {adjective}
    that {adult} had {handle.n} [before|that morning|the day before|last {day}]
    that [nobody|everybody] [liked|wanted|knew]
    from {place.the}
rel_thing:
    that was [under|behind|next to|near|on top of] the {thing}
    that [had|did not have] a~ {quality} [side|top|edge|smell]
    that [looked|felt|seemed] {adjective}
    that {adult} had {vt.n} [before|that morning|the day before|last {day}]
    that [nobody|everybody|{family}] [liked|wanted|knew]
    with a~ {adjective} {thing} [beside|inside|near] it
vp:
    {vi.@}
    {vi.@} [near|behind|past|around] the {thing}
    {vi.@} {manner}
    {vi.@} all [day|morning|afternoon|the time]
    {vt.@} {some_thing}
    {handle.@} {some_item}
    {handle.@} {some_item} {manner}
    {act.@}
    {act.@} with {adult}
    {act.@} and {vi.@}
    {act.@} and then {vp.@}
    {vt.@} {some_thing} and {handle.@} {some_item}
    {go.@} [home|outside|inside|back] to {act}
    {have.@} {some_item}
finite:
    {vp.@}
    {vp.@}
    {vp.@}
    {do.@} not {vp}
subject:
    {child}
    {adult}
    {child}, who {be.d} {glad},
    {child}, who {vp.d},
    {adult}, who {have.d} {some_item},
    the {job}
    the {trait} {job}
    {adult}, who never {handle.d} {some_item},
    a~ {trait} {job}
some_pet:
    the {pet}
    {child}'s {pet}
    the [little|old|young|hungry|fluffy] {pet}
    the {pet} that {handle_pet} {some_item}
    a~ {colour} {pet}
handle_pet:
    [found|hid|stole|broke|sat on|chewed]
pet_vp:
    {pet_vi.@}
    {pet_vi.@} and {pet_vi.@}
    {pet_vi.@} [near|behind|under] the {thing}
    {vt.@} {some_thing}
    {do.@} not {pet_vi}
past:
    {subject} {finite.d}
    {subject} {finite.d}
    {subject} {finite.d}
    {some_pet} {pet_vp.d}
    {x=child} {finite.d}, and {x.he} {finite.d}
    {x=child} {finite.d} when {x.his} [friend|brother|sister|mother|{pet}] {finite_short}
    {subject} {be.d} [very |so |not |]{glad}
    {subject} {be.d} [very |so |not |]{sad}
    {x=child} and {y=child} {finite.dp}
    {subject} could [not |]{act}
    there was {one_thing} [near|behind|beside|under] the {thing}
    there were {few} {quality} {thing.pl}
    it was [very |so |][cold|warm|late|early|dark|windy] [there|that day|{place}]
finite_short:
    [came back|was asleep|called|fell over|went away|had gone|asked]
one_thing:
    a~ {thing}
    a~ {adjective} {thing}
    only one {thing}
sentence:
    {^past}.
    {^past}.
    {^past}, [and|but|so] {past}.
    {^past} because {past}.
    When {past}, {past}.
    While {past}, {past}.
    Before {past}, {past}.
    After {past}, {past}.
    Although {past}, {past}.
    If {child} {vp.s}, {adult} will {vp}.
    {^past} until {past}.
    [Then|Soon|Later|At last|After that|In the end|One day|Once], {past}.
    Did {subject} {vp}?
    Why did {subject} {vp}?
    {child} {past_say} that {past}.
    {adult} [said|replied], "{^statement}."
    {child} [said|whispered], "{^statement}, [and|but] {statement}."
    {child} asked, "{^question}?"
    "{^statement}," [said|whispered|replied] {adult}.
    "{^statement}!" [cried|shouted|called] {child}.
    "{^question}?" [asked|wondered] {child}, [and|but] {past}.
    "{^statement}," said {adult}. "{^statement}."
    {^subject} [wanted|tried|began|hoped|forgot] to {vp}, [and|but] {past}.
past_say:
    [said|thought|knew|told {adult}|heard|wrote|saw|could see]
said:
    {^statement} .
    {^question} ?
statement:
    I {finite.d} [too|again|yesterday|once|last {day}]
    we will {vp} [soon|tomorrow|on {day}|together|later]
    please do not {handle} the {adjective} {item}
    {adult} {finite.s} every {day}
    I have never {vt.n} {some_thing}
    they are {vp.g}
    let us {act} and {vp}
    you must not {vp}
    there {be.s} {one_thing} [over there|near the {thing}|in my bag]
    my {pet} likes to {pet_vi} [at night|with {child}|in the morning]
    {past}
question:
    can you {vp}
    where is the {adjective} {thing}
    did {subject} {vp}
    why are they {vp.g}
    who {handle.d} the {adjective} {item}
    have you [ever |]{handle.n} {some_item}
    will {child} be {glad} if we {vp}
    is this {one_thing}
"""

TALK = """
exchange:
    {m}[what is|what's] this [then |]?{n}{c}[it's |]a~ {x=thing} .{n}{m}[yes|that's right], it's a~ {x} . [is it a~
        {colour} one|what colour is it] ?{n}{c}{colour} .
    {c}[where is|where's] {x=family} ?{n}{m}{x} {vi.s} in the other room . [do you want to see {x}|shall we call {x}]
        ?{n}{c}[no|yes|in a minute] .
    {m}do you want [some|a bit of|any] {x=mass} ?{n}{c}[no|yes please|no thank you|not now] .{n}{m}[are you
        sure|really] ? it's [nice|lovely|yummy] {x} .
    {c}I want [that|the] {x=toy} .{n}{m}which one, the {colour} {x} or the {colour} one ?{n}{c}the {size} one
        !{n}{m}[there you go|here it is|say please] .
    {m}how many {x=thing.pl} can you see ?{n}{c}[um |]{few} .{n}{m}[let's count them together|count again] . one, two,
        three .{n}{c}three {x.pl} !
    {c}look, {family}, a~ {adjective} {x=animal} !{n}{m}[oh yes|so it is|where] ? what does a~ {x} [say|eat|do]
        ?{n}{c}[I don't know|it runs away|it sleeps] .
    {m}what [does|can] the {x=animal} [like to eat|eat] ?{n}{c}{food.pl} ?{n}{m}[no, silly|not quite], it eats
        {x.food} .
    {c}I {act.d} [today|yesterday|this morning] .{n}{m}you {act.d} ? [who with|on your own|was it fun] ?{n}{c}with
        {child} and {child} .
    {m}what did you [do|see] [at school|today|this morning] ?{n}{c}[we|I] {vp.d} .{n}{m}[that sounds nice|did you
        really|oh lovely] .
    {c}why [is|was] the {x=thing} {quality} ?{n}{m}because {past} .{n}{c}why ?{n}{m}[because it was|I don't know,
        love|ask {family}] .
    {c}can I [have|hold|keep] the {x=thing} ?{n}{m}[not now|when you have finished|yes, but be careful], {past} .
    {m}[shall|can] we {act} [now|together|after lunch] ?{n}{c}[yes|no], I want to {vp} .{n}{m}[all right|first we
        {act}, then you can {vi}] .
    {m}put [on your|the] {x=clothing} [on |]please .{n}{c}I don't want the {x} .{n}{m}it's [cold|wet|windy] outside,
        you need a~ {x} .
    {c}it's [mine|broken|gone] .{n}{m}what is ?{n}{c}my {x=toy} .{n}{m}oh dear, [where did you put it|who had it|did
        you drop it] ?{n}{c}[near|under|behind] the {thing} .
    {m}[be careful with|hold on to] the {x=thing} .{n}{c}I am .{n}{m}good [boy|girl|job], now put it [next
        to|on|under] the {thing} .
    {c}I'm [hungry|thirsty|tired|cold] .{n}{m}[already|are you] ? [we'll have {food.a} soon|you can have {food.a}]
        .{n}{c}and {food.a} ?
    {m}[who is|who's] coming [on {day}|tomorrow|later] ?{n}{c}{x=adult} !{n}{m}yes, {x} is coming, and {x.he} will
        bring {some_toy} .
    {c}read [this|me the] book .{n}{m}which page ? this one, with the {adjective} {x=animal} ?{n}{c}yes . where's the
        baby {y=animal} ?{n}{m}it's [hiding|asleep|eating] .
    {c}{child} [hit|pushed|kissed|helped] me .{n}{m}did [you|somebody] [say sorry|cry|tell the teacher]
        ?{n}{c}[no|yes|a little bit] .
    {m}is that [a~ {x=thing}|the {x=thing}] ?{n}{c}no, [it's|it is] a~ {y=thing} .{n}{m}oh I see, a~ {y} . I thought
        it was a~ {x} .
    {m}what's the [weather|sky] like ?{n}{c}it's [raining|sunny|snowing|cloudy] .{n}{m}what do we need ?{n}{c}a~
        {clothing} .
    {c}I [made|drew|found] this .{n}{m}[it's beautiful|goodness], what is it ?{n}{c}it's {some_thing} .{n}{m}and
        [who|what] is that [next to it|over there] ?{n}{c}that's {child} .
    {c}again !{n}{m}again ? [one more time|last time], then we [must|have to] {act} .{n}{c}[no|ok] .
    {m}say goodbye to {x=adult} .{n}{c}bye bye {x} .{n}{m}see you on {day} .
    {c}mine is [bigger|{quality.er}] than yours .{n}{m}[is it|are you sure] ? I think mine is {quality.er} .{n}{c}no !
    {m}can you find the {colour} {x=thing} ?{n}{c}[this one|there|here it is] ?{n}{m}[well done|no, that one is
        {colour}|clever you] .
    {m}[do you|can you|don't you] remember {x=adult} ?{n}{c}{x.he} had a~ {adjective} {toy} .{n}{m}that's right, and
        {x.he} {vp.d} .
    {c}the {x=pet} {pet_vi.d} !{n}{m}did it ? where did it go ?{n}{c}[past|under|near|behind] the {thing} .
mass:
    [milk|juice|soup|toast|bread|cheese|porridge|yogurt|rice|pasta|jam|water]
some_toy:
    [a~|your|the] {colour} {toy}
    {few} {toy.pl}
aside:
    {m}[mhm|right|oh|yes|really|good|I see|well well|okay then] .{n}
    {c}[yeah|no|look|mine|hee hee|oh|uhoh|and this|what's that ?] .{n}
    {c}{said}{n}
    {m}{said}{n}
"""

FACTS = """
animal_facts:
    {^x.a} is a~ {x.class}. [It|This animal] [has|is known for having] {x.body}.
    {^x.pl} eat {x.food}, and they live in the {x.home}.
    {^x.a} can {x.ability}. [Can you do that?|Not many animals can.|That is how it stays alive.]
    A baby {x} is called a~ {x.young}. {^x.youngs} stay [close to|near] their mothers for {few} [weeks|months].
    [Most|Many|Some] {x.pl} {x.sound} when they are [hungry|afraid|happy|alone].
    If you [go to|look in] the {x.home}, you [may|might] see a~ {x}.
    Unlike a~ {y=animal}, which eats {y.food}, a~ {x} eats {x.food}.
    A~ {x} [is not|looks nothing like] a~ {y=animal}: it has {x.body}, but a~ {y} has {y.body}.
    {^x.pl} do not {y.sound}; they {x.sound}.
    Because {x.pl} have {x.body}, they are easy to [know|draw|find in a picture].
    In [spring|summer], a~ {x} may have {few} {x.youngs}. In winter there is less [food|light], so it
        [rests|hides|looks for {x.food}].
    [People|Scientists|Farmers] who [study|watch|look after] {x.pl} say that they [are {trait}|sleep for {few} hours a
        day|know each other by smell].
    A~ {x.young} [drinks|eats] [a little|very often] at first. When it is {few} months old, it [finds|eats] {x.food}.
    The [biggest|oldest|smallest] {x} [in the zoo|that we know of] is {few} years old, and it {x.sounds} every
        [morning|night].
    There are {few} kinds of {x}, and [all|most] of them eat {x.food}.
    [Do|Did] you know that {x.pl} can {x.ability}?
    The {x} is a~ {trait} animal that [stays|sleeps|hides] in the {x.home} [all day|at night|when it rains].
    What does a~ {x} need? It needs {x.food}, clean water and a safe {x.home}.
object_facts:
    {^x.a} is a~ {x.kind}. We use it to {x.use}.
    Most {x.pl} are made of {x.material}. [Long ago|In the past] they were [bigger|heavier|made by hand].
    Without a~ {x}, it would be hard to {x.use}.
    {^x.a} is for {x.using}, not for {y.using}. For that you need a~ {y=object}.
    The first {x} was made [a very long time|hundreds of years] ago by people who wanted to {x.use}.
    A [good|modern] {x} [lasts for|costs less than] {few} [years|coins], but an old one may be [{quality}|{colour}].
    Keep your {x} [clean|dry|in a safe place], and it will help you to {x.use} for years.
    {^x.pl} can be [big|small], [old|new], {colour} or {colour}.
    If a~ {x} is broken, ask [an adult|a~ {job}] to mend it.
    How does a~ {x} work? [Look inside|Ask someone who makes them|It is quite simple]: the {x.material} does most of
        the work.
job_facts:
    A~ {x} [is someone who|is a person who] {x.does}.
    [Every|Each] {day}, the {x} [gets up early|starts work at {few}] and {x.does}.
    A~ good {x} is {trait} and {trait}.
    You can meet a~ {x} {place}. [Say hello!|Ask what they do.]
    Anna's mother is a~ {x}. She {x.does}, but she does not like to {vi}.
    What does a~ {x} do? A~ {x} {x.does}.
    To be a~ {x}, you have to learn for {few} years.
    A~ {x} needs [a~ {object}|a~ {object} and a~ {quality} {thing}].
nature_facts:
    In {season} the days are [longer|shorter|colder|warmer], and [the leaves|the birds|the farmers|the children]
        [change|leave|work hard|stay out late].
    [The sun|A star|The moon] is much [bigger|further away] than it looks.
    Water can be a liquid, like rain; a solid, like ice; or a gas, like steam.
    A~ {plant} needs light, water and air. Its roots [drink|hold it still], and its leaves [catch the light|make food].
    Rain falls from clouds. When it is cold enough, the rain turns to snow.
    There are twelve months in a year. {month} comes [before|after] some of them, and it is in the [cold|warm] part of
        the year for many people.
    [A seed|An acorn] is small, but [a tall {plant}|a whole plant] can grow from it in {few} years.
    The wind is air that moves. A strong wind can [move a boat|break a branch|carry sand for {few} miles].
    Sound is [made|heard] when something shakes. [A drum|A string|A bell] shakes, and so does the air.
    The sea is salty, but the water in a river [or a lake |]is not.
    Our bodies have {body} that help us to [move|see|hear|think|breathe].
body:
    [bones|muscles|two eyes|two ears|a heart|two lungs|strong legs|skin and hair]
"""

LETTERS = """
greeting:
    Dear {to},
    My dear {to},
    Hello {to}!
    Hi {to},
opening:
    Thank you for the {adjective} {toy}. I [use it|show it to {child}|look at it] every day.
    How are you? I am [very |quite |]{glad}[.|, and so is {family}.]
    I am writing to [tell|ask] you about the {thing}.
    We are [on holiday|staying] {place}. It is {quality} here, and there are {few} {thing.pl}.
    I hope you are well. [It has rained|The sun has shone] for {few} days.
    Last {day} was my birthday. I am now {few} years old!
    I am sorry that I did not write [before|last week|in {month}].
news:
    On {day} we went {place.to}, and {past}.
    {sentence}
    {sentence}
    Our {pet} {pet_vi.s} [now|every day|all the time]. [It is so funny.|{family} says it will stop.]
    I have learnt to {act}, but I still can't {act}.
    {child} {be.s} my best friend. We {vp.p} [at school|after lunch|every {day}].
    My tooth came out when I was {act.g}.
    {family} {be.s} {act.g} while I write this.
    Do you remember the {adjective} {thing}? {child} {vt.d} it!
request:
    [Can|Could|Will] you [come and visit|send me {some_toy2}|tell me about your {pet}] [soon|in {month}|next week]?
    Please write back and tell me [what you {vt.d}|if you like {food.pl}|about the {thing}].
    When you come, we can {act} and [then |]{vi}.
    What do you {vt} at home? Have you {act.n}?
some_toy2:
    [a~ {adjective} {toy}|a picture of your {thing}|{few} {toy.pl}]
closing:
    Love from {from}
    With love and {few} kisses,{n}{from}
    Your friend,{n}{from}
    Yours truly,{n}{from}
    See you soon!{n}{from}
"""

PICTURES = """
picture:
    [Look!|See?|Here we are.] [This is|Here is] a~ {adjective} {x=thing}. [It is|It's] [next to|under|behind|beside|in
        front of] the {thing}.
    Can you [see|find|point to] the {colour} {thing}? [There it is!|It is very small.|Yes, well done!|Who put it there?]
    {child} {be.s} {act.g}. {child} {be.s} only {vi.g}.
    How many {x=thing.pl} are there? There are {few} {x.pl}, and one of them is {colour}.
    The {thing} is {quality}, but the {thing} is [not|very {quality}].
    {x=child} has a~ {colour} {clothing}. {^x.he} [wears|wore] it [every day|when it rains|to school].
    The {x=animal} {x.sounds}. [What does it want?|Listen!|Where is its {x.young}?] [It wants {x.food}.|It is far from
        the {x.home}.]
    In this picture {x=adult} is {act.g}. {^x.he} looks {glad}. [Why is {x.he} {glad}?|Do you know why?]
    On the [left|right] there {be.s} a~ {adjective} {thing}; on the other side there {be.p} {few} {thing.pl}.
    One {x=thing}, two {x.pl}, three {x.pl}! [Who is counting?|Count them again.|They are all {colour}.]
    The {thing} is {quality.er} than the {thing}. [Which one is the biggest?|Which one do you like?]
    Turn the page. Now {past}, and {child} {be.s} [{glad}|{sad}].
    {x=child} and {y=child} {be.p} here too. {x} {vt.s} {some_thing}, and {y} {vp.s}.
    What is the {x=pet} doing? It is {pet_vi.g}! [Silly {x}!|Pets can't do that!]
    [Up|Down|Far away|Right at the back] [there|in the picture] you can see {some_thing}.
"""

HOW_TO = """
cook_step:
    [Take|Get|Find] {food.a} and [put|place] [it|all of it] [on a plate|in a bowl|next to the pan].
    Wash {few} {count_food.pl} with [warm|cold] water.
    [Ask|Tell] {family} to [cut|open|slice|warm] the {food}.
    Mix the {food} and the {food} [slowly|well|with a spoon] for {few} minutes.
    Wait for {few} minutes. [Do not open the oven|You can {act} while you wait].
    Add {few} [spoons|cups] of [milk|water|sugar|flour|oil|juice].
    If it is too [wet|dry|hot|thick], [add more {food}|wait a little|stir it again].
    Peel the {count_food.pl}, then [chop|mash|grate] them.
    Taste it. Does it need [more |some ][salt|sugar|lemon juice|butter|pepper]?
    Let it [cool|rest|bake|boil] until it is [soft|brown|golden|firm].
    Serve it with {food.a} [and {food.a}|in a~ {colour} bowl].
craft_step:
    [Draw|Cut out|Paint] a~ {adjective} {shape} on the [paper|box|card].
    Stick the {colour} {shape} [to|under|over] the {colour} {shape}[ with glue|].
    Tie a~ {size} [string|ribbon] round the {shape}.
    [Carefully|Gently|Slowly] [turn|press|fold] it {few} times.
    [Count|Check] the {shape}s: there should be {few} of them.
    Leave it [in the sun|by the window|in a cool place] until it is [dry|hard].
    Make {few} small holes near the [edge|top|bottom].
    Use {colour} paint for the [top|sides|middle] and {colour} paint for the rest.
    If the {shape} is too {size}, [trim it|try again|use more card].
    Write your name [inside|on the back] [in {colour} ink|with a~ {colour} pencil].
    Ask {family} to hold the {shape} while you fold the corners.
last_step:
    Now [show|give] it to {family}[, or keep it for {day}|].
    Remember to tidy up. Put the [scissors|bowls|brushes|spoons] [back|away] when you have finished.
    [You are|We are] done! {^adult} will be {glad}.
    It is ready. {x=child} made one in {few} minutes, but {x.he} had help from {adult}.
shape:
    [circle|square|star|heart|line|triangle|moon|house|leaf|flower]
tip:
    Never use [a knife|the oven|scissors] without [an adult|{family}].
    You can [also make one|do the same] with {food.a}[ or {food.a}|].
    Make {few}, so that {child} and {child} can have one too.
    If it goes wrong, {do} it again [more {manner}|on {day}]. {^adult} always says so.
"""

DISHES = ("fruit salad", "cake", "vegetable soup", "cheese toast", "pancake", "apple pie", "birthday cake", "sandwich",
          "bowl of porridge", "milkshake", "rice pudding", "omelette", "pot of jam", "green salad")  # fmt: skip
CRAFTS = ("paper boat", "kite", "mask", "birthday card", "puppet", "bird house", "paper lantern", "cardboard castle",
          "crown", "picture frame", "ornament", "rattle", "book of your own", "paper chain")  # fmt: skip
MATERIALS = ("some glue", "a~ pair of scissors", "three sheets of paper", "a~ cardboard box", "some string",
             "a~ paintbrush", "an old newspaper", "a~ ruler", "two paper plates", "some coloured pencils")  # fmt: skip

QUIZ = """
quiz:
    Q: What do {x=animal.pl} eat?{n}A: They eat {x.food}.
    Q: Where does a~ {x=animal} live?{n}A: [It lives in|You can find it in] the {x.home}.
    Q: What do you call a baby {x=animal}?{n}A: [It is called a~|A~] {x.young}.
    Q: Is a~ {x=animal} [really |]a~ {x.class}?{n}A: Yes, it is. It has {x.body}.
    Q: Which animal can {x.ability}?{n}A: A~ {x} can.
    Q: What is a~ {x=object} for?{n}A: [It is for|We use it for] {x.using}.
    Q: What is a~ {x=object} made of?{n}A: [Usually |It is made of ]{x.material}.
    Q: Does a~ {x=animal} {y.sound}?{n}A: No, a~ {y} does. A~ {x} [does|can do] something else: it {x.sounds}.
    Q: Why do we [wear|need] a~ {x=clothing}?{n}A: Because [it is cold|the wind blows|it keeps us warm|it may rain].
    Q: What day is it today, if tomorrow is {tomorrow}?{n}A: It is {today}.
    Q: I am {colour} and {quality}, and you can find me {place}. What am I?{n}A: You are a~ {thing}!
    Q: How many [legs|ears|eyes] do {few} {x=animal.pl} have?{n}A: Look at one first. A~ {x} has {x.body}.
    Q: Did {child} {act}?{n}A: [No, but|Yes, and] {past}.
    Q: When do people {act}?{n}A: Often in {month}, or on a~ {day}.
"""

DIARY = """
weather:
    It was [cold|warm|wet|windy|foggy|sunny|cloudy|hot|icy][ today| all day| again| in the morning|].
    It [rained|snowed] [a little|a lot|all night|until lunch] and the {thing} was [wet|white|under water].
    The wind blew [hard|from the {compass}] and {past}.
    The sun came out at {few} o'clock[.|, so we {act.dp}.|, but it was still cold.]
    Tomorrow will be [dry|wet|cold|warm], with {few} degrees and a [light|strong] wind from the {compass}.
    [No clouds|A few clouds|Big grey clouds] [over|above] the hills.
compass:
    [north|south|east|west|north-east|south-west]
event:
    {sentence}
    {sentence}
    I {vp.d}.
    I {vp.d} [because|when|before|after] {past}.
    We had {food.a} and {food.a} for [lunch|tea|breakfast|dinner].
    I [saw|met] {x=child} {place}. {^x.he} {vp.d}, and I {vi.d}.
    {family} says I am [too {sad}|very {trait}], but I [don't think so|feel quite well].
    I feel {glad} [now|today|because {past}].
    I lost my {x=clothing}. {adult} found it [near|behind|under] the {thing}.
    Nothing [much |]happened, so I {act.d}.
    [Note|Remember]: {act} [tomorrow|on {day}|before tea].
"""

ESSAY = """
claim:
    Today we [learnt|talked|read] about [the {thing}|{x=animal.pl}|{x=object.pl}].
    My favourite [animal|pet] is the {x=animal} because it can {x.ability}.
    I like {season} [best|most] because [it is warm|we {act.p}|there are {few} days off].
    A~ {x=object} is more useful than a~ {y=object}, I think. With a~ {x} you can {x.use}.
    {x=adult} is my hero. {^x.he} [is {trait} and {trait}|always helps people|{vp.s} every day].
"""

RHYMING = """
verse_start:
    {^some_animal} [sat by|ran to|looked at|danced with] the {end},
    {child} and {child} {vi.dp} past the {end},
    One for the {animal} and [one|two] for the {end},
    There was a~ {size} {animal} who wanted a~ {end},
    [Hush|Hey|Oh dear], little {animal}, come see the {end},
    Over the {thing} and under the {end},
    [Up|Down|Round and round] went {child} to find the {end},
    Who {vt.d} the {colour} {thing}, the {thing} or the {end}?
    {^few} {quality} {thing.pl} [fell on|flew over|stood near] the {end},
    On {day} [morning|evening] we all {vt.d} a~ {end},
    My [mother|brother|sister|teacher] has a~ {quality} {end},
verse_next:
    and {child} [sang|gave some {food}|said goodnight|told a story] to the {end}.
    and [all the {animal.pl}|nobody|everybody] {vi.dp} on the {end}.
    but where, oh where, is the {colour} {end}?
    with a~ {thing} and a~ {thing} and a~ {quality} {end}.
    and {past_short}, right next to the {end}.
    so {vi} with the {animal} and {vi} with the {end}.
    and that is the [song|tale] of the {size} {end}.
verse_end:
    and {child} [ran|walked|danced|skipped] home with the {end}.
    so goodnight, {animal}, and goodnight, {end}!
    but nobody, nobody, {vt.d} the {end}.
    and {some_animal} {vi.d} all night on the {end}.
    and [they|we] [shared|ate] all the {food} with the {end}.
    and {past_short}, and so did the {end}.
    and oh, how {quality} it was by the {end}!
some_animal:
    the {quality} {animal}
    the {animal}
    a~ {trait} {animal}
past_short:
    {child} {vi.d}
    the {animal} {vi.d}
    [they|we] all {vi.dp}
"""

SHOP = """
sale:
    {s}Good [morning|afternoon]! [What would you like|Can I help you|How are you today]?{n}{b}[Hello. |]I [would
        like|need|want] {count} {x.pl}, please.{n}{s}That is {cost} [coins|pence|pennies]. [They are very
        fresh.|Anything else?]
    {b}How much [is one {x}|are the {x.pl}]?{n}{s}One {x} costs {price}, so {count} cost {cost}.{n}{b}[That is a
        lot|Fine|Good]. [I will take {count}.|Here is the money.]
    {b}Do you [sell|have] {food.a}?{n}{s}[I am sorry, we do not|Yes, we do|Only on {day}]. [Try|There is] some [next
        to|behind|under] the {thing}.
    {s}Here [is your change|are your {x.pl}]. {paid} take away {cost} is {change}.{n}{b}Thank you! [See you on
        {day}.|My {family2} will like them.]
    {b}[This|That] {clothing} is too [big|small|{quality}]. Have you got a~ {colour} one?{n}{s}[Let me look|I think
        so]. [Here is one.|No, only {few} {colour} ones.]
    {b}[And|Also] {food.a}, please.{n}{s}[Of course|Certainly]. [A bag|A box] too?{n}{b}[No, I have a basket|Yes,
        please].
family2:
    [mother|brother|sister|aunt|friend]
"""


@cache
def rules() -> dict[str, Rule | list[Word]]:
    """Return the rules and word lists of all the genres."""
    text = f"{SENTENCES}{TALK}{FACTS}{LETTERS}{PICTURES}{HOW_TO}{QUIZ}{DIARY}{ESSAY}{RHYMING}{SHOP}"
    return parse_rules(text) | word_lists()


def document(rng: Random) -> str:
    """Write one document of a random genre."""
    writer = Writer(rules(), rng)
    place, things, actions = writer.pick(places())
    # A small cast, so that the same few people recur within a document.
    cast = {name: writer.sample(writer.words(name), n) for name, n in (("child", 5), ("adult", 3), ("pet", 2))}
    writer.bind(thing=things, act=actions, **cast)
    text = settle_articles(writer.pick(GENRES)(writer, place))
    return curl_quotes(text) if writer.chance(0.06) else text


def talk(writer: Writer, place: Word) -> str:
    """A transcript of a child and an adult, with the speakers labelled in one of three ways."""
    child, adult = writer.fresh(writer.words("child")), writer.fresh(writer.words("family"))
    writer.bind(family=[word for word in writer.words("family") if word is not adult])
    labels = [("*CHI: ", "*MOT: "), ("CHILD: ", "ADULT: "), (f"{child['']}: ", f"{adult['']}: ")]
    c, m = writer.pick(labels)
    writer.bind(c=c, m=m)
    head = f"[{adult['']} and {child['']} {place['']}]\n" if writer.chance(0.5) else ""
    turns = []
    for _ in range(writer.number(2, 9)):
        turns.append(writer.write("exchange") + "\n")
        if writer.chance(0.4):
            turns.append(writer.write("aside"))
    return head + "".join(turns)


def facts(writer: Writer, place: Word) -> str:
    """An encyclopaedia entry about an animal, a thing, a job or nature, sometimes compared with a second one."""
    topic, rule = writer.pick([("animal", "animal_facts")] * 3 + [("object", "object_facts"), ("job", "job_facts")])
    subject = writer.fresh(writer.words(topic))
    second = writer.fresh(writer.words(topic))
    writer.bind(x=subject, y=second)
    paragraphs = [writer.lines(rule, 3, 7)]
    if writer.chance(0.4):
        paragraphs.append(writer.lines("nature_facts", 1, 4))
    if writer.chance(0.4):
        writer.bind(x=second, y=subject)
        paragraphs.append(writer.lines(rule, 2, 5))
    title = writer.pick([subject["pl"].capitalize(), f"All about {subject['pl']}", f"= {subject[''].capitalize()} ="])
    return title + "\n\n" + "\n\n".join(paragraphs) + "\n"


def letter(writer: Writer, place: Word) -> str:
    """A letter or postcard with a date, news, a question and a signature."""
    writer.bind(to=writer.fresh(writer.words("family") + writer.words("child")))
    writer.bind(**{"from": writer.fresh(writer.words("child"))})
    date = (
        f"{writer.number(1, 28)} {writer.write('month')} {writer.number(1952, 2019)}\n\n" if writer.chance(0.7) else ""
    )
    body = [writer.write("opening"), writer.lines("news", 2, 6), writer.write("request")]
    return date + writer.write("greeting") + "\n\n" + " ".join(body) + "\n\n" + writer.write("closing") + "\n"


def picture_book(writer: Writer, place: Word) -> str:
    """The words of a picture book, page by page."""
    separator = writer.pick(["\n", "\n\n", " "])
    return writer.lines("picture", 4, 9, separator) + "\n"


def how_to(writer: Writer, place: Word) -> str:
    """Numbered instructions for cooking or crafts, with a tip."""
    kind = writer.pick(["cook", "craft"])
    what = writer.pick(DISHES if kind == "cook" else CRAFTS)
    food = [f"{writer.write('few')} {writer.write('count_food', 'pl')}", writer.write("food", "a")]
    needs = food if kind == "cook" else writer.sample(MATERIALS, writer.number(2, 4))
    title = writer.pick([f"How to make a~ {what}", f"To make a~ {what}, you need:", f"Let us make a~ {what}!"])
    bullet = writer.pick(["{}. ", "Step {}: ", "{}) "])
    steps = [writer.write(f"{kind}_step") for _ in range(writer.number(3, 7))] + [writer.write("last_step")]
    numbered = [bullet.format(i) + step for i, step in enumerate(steps, start=1)]
    return "\n".join([title, *[f"- {need}" for need in needs], *numbered, writer.write("tip")]) + "\n"


def quiz(writer: Writer, place: Word) -> str:
    """Questions and answers."""
    week = [day[""] for day in writer.words("day")]
    pairs = []
    for _ in range(writer.number(3, 8)):
        today = writer.number(0, 6)
        writer.bind(today=week[today], tomorrow=week[(today + 1) % 7], x=writer.fresh(writer.words("animal")))
        writer.bind(y=writer.fresh(writer.words("animal")))
        pairs.append(_question_about_job(writer) if writer.chance(0.15) else writer.write("quiz"))
    return "\n\n".join(pairs) + "\n"


def _question_about_job(writer: Writer) -> str:
    job = writer.fresh(writer.words("job"))
    return writer.pick(
        [f"Q: Who {job['does']}?\nA: A~ {job['']} does.", f"Q: What is a~ {job['']}?\nA: Someone who {job['does']}."]
    )


def diary(writer: Writer, place: Word) -> str:
    """A diary or weather log over a few days of one month."""
    month, day = writer.write("month"), writer.number(1, 20)
    week = [entry[""] for entry in writer.words("day")]
    first = writer.number(0, 6)
    entries = []
    for i in range(writer.number(2, 5)):
        head = writer.pick([f"{week[(first + i) % 7]}, {month} {day + i}.", f"{day + i} {month}:"])
        entries.append(f"{head} {writer.write('weather')} {writer.lines('event', 1, 4)}")
    return "\n".join(entries) + "\n"


def sums(writer: Writer, place: Word) -> str:
    """Word problems with correct answers."""
    return "\n".join([_sum(writer) for _ in range(writer.number(2, 7))]) + "\n"


def _sum(writer: Writer) -> str:
    person, giver = writer.fresh(writer.words("child")), writer.fresh(writer.words("adult"))
    things = writer.bound["thing"]
    assert isinstance(things, list)
    thing = writer.pick(writer.pick([writer.words("count_food"), writer.words("toy"), things]))
    a, b = writer.number(4, 30), writer.number(2, 12)
    name, he, many = person[""], person["he"], thing["pl"]
    ask = writer.pick([f"How many {many} does {he} have now?", "How many are there now?", f"How many {many} is that?"])
    kind = writer.number(0, 3)
    if kind == 0:
        gives = writer.pick(["gives", "buys", "finds", "brings"])
        story = f"{name} has {a} {many}. {giver['']} {gives} {person['him']} {b} more. {ask} {a} + {b} = {a + b}."
    elif kind == 1:
        b = min(a - 1, b)
        lost = writer.pick(["loses", "gives away", "sells", "drops"])
        story = f"{name} has {a} {many}, but {he} {lost} {b} of them. {ask} {a} - {b} = {a - b}."
    elif kind == 2:
        story = f"There are {b} boxes, with {a} {many} in each box. How many is that? {b} x {a} = {a * b}."
    else:
        story = f"{name} shares {a * b} {many} with friends. There are {b} of them in all, so each one gets {a}."
    return story + writer.pick(["", f" {name} is {writer.write('glad')}.", " Is that right? Yes!", " Count and see."])


def rhyme(writer: Writer, place: Word) -> str:
    """A rhyme in couplets (aabb) or alternating lines (abab)."""
    verses = []
    for _ in range(writer.number(1, 4)):
        first, second = [writer.sample(family, 2) for family in writer.sample(rhyme_families(), 2)]
        ends = [*first, *second] if writer.chance(0.6) else [first[0], second[0], first[1], second[1]]
        rules = ["verse_start", "verse_next", "verse_start", "verse_end"]
        verses.append("\n".join([_verse_line(writer, rule, end) for rule, end in zip(rules, ends, strict=True)]))
    return "\n\n".join(verses) + "\n"


def _verse_line(writer: Writer, rule: str, end: str) -> str:
    writer.bind(end=end)
    return writer.write(rule)


def narrative(writer: Writer, place: Word) -> str:
    """Plain sentences about what people did in one place."""
    paragraphs = [writer.lines("sentence", 3, 7) for _ in range(writer.number(1, 3))]
    head = writer.pick(["", "", writer.write("claim") + " "])
    return head + "\n\n".join(paragraphs) + "\n"


def shopping(writer: Writer, place: Word) -> str:
    """A talk in a shop; the money adds up."""
    writer.bind(x=writer.fresh(writer.words("count_food")))
    price, count = writer.number(2, 9), writer.number(2, 12)
    cost = price * count
    paid = cost + writer.number(1, 20)
    writer.bind(price=price, count=count, cost=cost, paid=paid, change=paid - cost)
    seller, buyer = writer.write("adult"), writer.write("child")
    writer.bind(s=f"{seller}: ", b=f"{buyer}: ")
    return writer.lines("sale", 3, 6, "\n") + "\n"


# A genre named several times is that many times as likely.
GENRES = (
    *(talk, talk, talk, facts, facts, narrative, narrative),
    *(letter, picture_book, how_to, quiz, diary, sums, rhyme, shopping),
)
