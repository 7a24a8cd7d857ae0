# SPDX-License-Identifier: Apache-2.0
"""Training text of the demo model: everything is generated here from a seed.

Three kinds of documents: prose (descriptions and stories that keep track of
who, what and where), ChatML dialogues about the same world, and recall
documents, in which codes are stated among prose and asked for later.
"""
from __future__ import annotations

import random
import re

from world import ANIMALS, COLOURS, NAMES, OBJECTS, PEOPLE, PLACES, THINGS, TREASURES

IM_START, IM_END, EOT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
THINK = "<think>\n\n</think>\n\n"
_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def fill(rng: random.Random, text: str, **kw: str) -> str:
    """Resolve [a|b|c] choices from the inside out, then {slots}."""
    while True:
        m = _CHOICE.search(text)
        if not m:
            break
        text = text[:m.start()] + rng.choice(m.group(1).split("|")) + text[m.end():]
    if kw:
        text = text.format(**kw)
    return text


def an(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def cap(s: str) -> str:
    return s[0].upper() + s[1:]


def plural(n: str) -> str:
    irregular = {"mouse": "mice", "wolf": "wolves", "fox": "foxes", "deer": "deer", "sheep": "sheep", "goose": "geese"}
    return irregular.get(n, n + "s")


# ---------------------------------------------------------------- descriptions

def describe_animal(rng, name):
    a = ANIMALS[name]
    kw = dict(n=name, an=an(name), An=cap(an(name)), N=cap(plural(name)), adj=a["adj"], adj2=a["adj2"], home=a["home"],
              food=a["food"], food2=a["food2"], look=a["look"], act=a["act"], time=a["time"], sound=a["sound"], trait=a["trait"])
    first = rng.choice([
        "{An} is [a|an animal that is often called a] {adj} animal with {look}.",
        "The {n} is {adj} and {adj2}, and it is easy to know by {look}.",
        "{An} is an animal that lives {home}.",
    ])
    first = first.replace("[a|an animal that is often called a] {adj}", "a {adj}" if a["adj"][0] not in "aeiou" else "an {adj}")
    rest = [
        "It [lives|makes its home|likes to live] {home}.",
        "The {n} [eats|likes to eat|mostly eats] {food}[, and sometimes {food2}| and {food2}].",
        "It is most active {time}, when it likes to {act}.",
        "You can hear it {sound}[| from far away| when the wind is still].",
        "{N} are known to be {adj}[, but they can also be {adj2}| and {adj2}].",
        "[People say that|Many people think that|Children learn that] the {n} {trait}.",
        "With {look}, it is [easy to see|hard to miss|a fine sight to see].",
        "In winter [it looks for {food} under the snow|it stays close to its home|food is hard to find, so it is careful].",
        "A young {n} stays with its mother until it can find {food} by itself.",
        "If you meet {an}, [stay quiet and watch|do not run, only stand still|keep a little distance and enjoy the sight].",
    ]
    rng.shuffle(rest)
    last = ["This is why many people like the {n}.", "The {n} is a [wonderful|remarkable|interesting] animal.",
            "[It is good to know that|We are lucky that] the {n} still lives {home}."]
    out = [first] + rest[:rng.randint(3, 6)]
    if rng.random() < 0.6:
        out.append(rng.choice(last))
    return [fill(rng, s, **kw) for s in out]


def describe_place(rng, name):
    p = PLACES[name]
    kw = dict(n=name, where=p["where"], see=p["see"], see2=p["see2"], hear=p["hear"], who=p["who"], do=p["do"],
              made=p["made"], old=p["old"])
    first = rng.choice(["The {n} stands {where}.", "The {n} is {old}, and it [stands|lies] {where}.",
                        "{where_} there is a {n} that is {old}."])
    if "{where_}" in first or name in ("island", "mountain", "river", "forest", "lake", "valley", "village", "meadow"):
        first = rng.choice(["The {n} lies {where}.", "The {n} is {old}, and it lies {where}."])
    rest = [
        "It is made of {made}." if p["made"] else "It is {old}, as [all|the old] people of the village know.",
        "There you can see {see}[| and {see2}].",
        "[Visitors|Travellers|Children] often [stop|stay for a while] to look at {see2}.",
        "In the [morning|evening] you can hear {hear}.",
        "The {who} [works there every day|knows it better than anyone|comes there early in the morning].",
        "[Many people|People from the village] go there to {do}.",
        "When it rains, [the {n} is quiet and empty|only the {who} stays there|you can hear {hear} even better].",
        "In summer [it is full of visitors|people come to {do}|it is warm and full of light].",
        "At night the {n} is [dark and still|quiet under the stars|lit only by the moon].",
        "[Some say|The {who} says|Old stories say] that the {n} is {old}.",
    ]
    rng.shuffle(rest)
    out = [first] + rest[:rng.randint(3, 6)]
    if rng.random() < 0.6:
        out.append(rng.choice(["The {n} is a place that people [remember|love|do not forget].",
                               "If you visit the {n}, [take your time|look for {see}|listen to {hear}].",
                               "It is a good place to {do}."]))
    return [fill(rng, s, **kw) for s in out]


def describe_person(rng, job):
    p = PEOPLE[job]
    kw = dict(j=job, a=cap(an(job)), an=an(job), place=p["place"], tool=p["tool"], tool2=p["tool2"], task=p["task"], task2=p["task2"],
              gives=p["gives"], trait=p["trait"], worry=p["worry"])
    first = rng.choice(["{a} works {place}.", "The {j} works {place} and is known to be {trait}.",
                        "{a} is a person who [has to|must] {task} every day."])
    rest = [
        "Every morning the {j} [has to|likes to|must] {task}.",
        "The most important tools are {tool} and {tool2}.",
        "In the afternoon there is time to {task2}.",
        "People [thank|know|visit] the {j} because of {gives}.",
        "A good {j} is {trait}.",
        "The {j} is only worried about {worry}.",
        "Without {tool}, the {j} could not {task}.",
        "It takes [years|a long time|much patience] to learn how to {task}.",
        "When the day is over, the {j} [puts away {tool2}|rests by the fire|looks back on the work and is content].",
    ]
    rng.shuffle(rest)
    out = [first] + rest[:rng.randint(3, 6)]
    if rng.random() < 0.5:
        out.append(rng.choice(["The life of {an} is [simple|not always easy], but it is a good life.",
                               "The village [needs|is proud of] its {j}."]))
    return [fill(rng, s, **kw) for s in out]


def describe_thing(rng, name):
    t = THINGS[name]
    out = [t["first"]] + rng.sample(t["rest"], min(len(t["rest"]), rng.randint(3, 5)))
    return [fill(rng, s) for s in out]


def topic(rng):
    """(phrase with article as in 'tell me about ...', sentences)"""
    r = rng.random()
    if r < 0.35:
        n = rng.choice(list(ANIMALS))
        return rng.choice([an(n), "the " + n, plural(n)]), describe_animal(rng, n)
    if r < 0.65:
        n = rng.choice(list(PLACES))
        return "the " + n, describe_place(rng, n)
    if r < 0.85:
        n = rng.choice(list(PEOPLE))
        return rng.choice([an(n), "the " + n]), describe_person(rng, n)
    n = rng.choice(list(THINGS))
    return THINGS[n]["phrase"], describe_thing(rng, n)


# --------------------------------------------------------------------- stories

def story(rng, job=None, animal=None, place=None):
    """A story; returns its sentences and the facts that questions may ask for."""
    name, he, him, his = rng.choice(NAMES)
    lead = job or rng.choice(list(PEOPLE))
    p = PEOPLE[lead]
    animal = animal or rng.choice(list(ANIMALS))
    a = ANIMALS[animal]
    place = place or rng.choice(list(PLACES))
    pl = PLACES[place]
    friend, fhe, fhim, fhis = rng.choice([n for n in NAMES if n[0] != name])
    col, item = rng.choice(COLOURS), rng.choice(TREASURES)
    kw = dict(name=name, he=he, He=cap(he), him=him, his=his, His=cap(his), job=lead, ajob=an(lead), work=p["place"], task=p["task"],
              task2=p["task2"], tool=p["tool"], trait=p["trait"], worry=p["worry"], animal=animal, an=an(animal), look=a["look"],
              food=a["food"], aadj=a["adj"], sound=a["sound"], place=place, where=pl["where"], see=pl["see"], hear=pl["hear"],
              friend=friend, fhe=fhe, Fhe=cap(fhe), fhim=fhim, fhis=fhis, col=col, item=item, acol=an(col))
    s = [
        rng.choice(["[Once|Long ago|Many years ago] there was {ajob} [named|called] {name}, who worked {work}.",
                    "{name} was {ajob}. {He} worked {work}.",
                    "[In a small village|Near the sea|In a quiet valley] lived {ajob} whose name was {name}."]),
        rng.choice(["{name} was {trait}, and every day {he} had to {task}.",
                    "Every morning {he} had to {task}, and in the evening {he} liked to {task2}.",
                    "People liked {name}, because {he} was {trait}."]),
    ]
    plot = rng.randrange(4)
    facts = {"who": name, "job": lead}
    if plot == 0:  # something is lost and found with the help of an animal
        facts.update(lost=f"{col} {item}", found="the " + place, helper=an(animal))
        s += ["One [morning|evening|day], {name} [saw|noticed] that {his} {col} {item} was [gone|missing|not in its place].",
              "{He} looked [everywhere|under the table and behind the door|in every room], but {he} could not find it.",
              "\"[Where can it be|Who has taken it|What shall I do now]?\" {he} asked.",
              "Then {name} met {an} with {look}.",
              "\"[I have seen your {item}|I know where your {item} is],\" said the {animal}. \"[It is near the {place}|Look near the {place}|Follow me to the {place}].\"",
              "[Together they walked|They went together|So they hurried] to the {place}, where they could see {see}.",
              "There, [in the grass|under a stone|beside the path], lay the {col} {item}.",
              "{name} was so [happy|glad] that {he} gave the {animal} {food}."]
    elif plot == 1:  # a storm, somebody needs help
        facts.update(helped=friend, where="the " + place)
        s += ["One [night|evening|autumn day] a [great|terrible|cold] storm came [from the sea|over the hills].",
              "The wind was so strong that {name} could hardly {task}.",
              "Suddenly {he} heard a voice [from the {place}|near the {place}].",
              "It was {friend}, who had lost [the way|{fhis} way] in the [rain|dark].",
              "{name} took {acol} {item} and went out to help {fhim}.",
              "\"[Do not be afraid|Stay where you are|Take my hand],\" {he} called. \"[I am coming|I can see you|We will soon be home].\"",
              "[Step by step|Slowly and carefully] they walked home [through the rain|against the wind].",
              "{friend} thanked {name} and said, \"[I will never forget this|You are a true friend|Without you I would be lost].\""]
    elif plot == 2:  # an animal in need becomes a friend
        facts.update(met=an(animal), where="the " + place)
        s += ["One day, on the way to the {place}, {name} [saw|found] {an}.",
              "It had {look}, but it [was hurt and could not walk|was very cold|looked hungry and afraid].",
              "{name} [sat down beside it|spoke to it in a low voice|stayed very still], and after a while the {animal} came closer.",
              "{He} gave it {food} and [covered it with a blanket|put it in {acol} {item}|took it home].",
              "For [three days|a week|many days] {he} took care of the {animal}.",
              "When it was [well|strong] again, {he} brought it back to the {place}.",
              "[From then on|After that], the {animal} came back every [evening|morning|week] to visit {name}."]
    else:  # a gift and a secret
        facts.update(gift=f"{col} {item}", giver=friend, where="the " + place)
        s += ["[One spring morning|On a cold winter day|One evening] {friend} came to visit {him} and brought a gift.",
              "It was {acol} {item}.",
              "\"[Keep it well|Take good care of it|It belonged to my grandmother],\" said {friend}. \"[One day you will need it|It brings good luck|It has a secret].\"",
              "{name} [thanked {fhim}|did not know what to say], and put the {item} on the table.",
              "[In the night|A few days later] {he} took the {item} to the {place}, which lay {where}.",
              "{He} could hear {hear}, and {he} [was not afraid|felt calm|smiled].",
              "There {he} opened the {item} and found [a letter|a small map|an old coin] inside.",
              "Now {name} [knew the secret|understood what {friend} had meant|could only laugh]."]
    # extra colour between the sentences of the plot
    extra = ["The sky was [grey|clear|full of stars|dark], and the air smelled of [rain|salt|grass|snow].",
             "{name} thought of {worry} and sighed.", "It was so [quiet|still] that {he} could hear {hear}.",
             "The [road|path] was long, but {name} did not mind."]
    for e in rng.sample(extra, rng.randint(0, 2)):
        s.insert(rng.randint(3, len(s) - 1), e)
    s.append(rng.choice([
        "And so {name} went back to {his} work, and everything was well.",
        "That evening {he} [slept well|sat by the fire for a long time|told the story to everyone in the village].",
        "From that day on, {he} was never [alone|sad|afraid] again.",
        "The people of the village still tell this story [today|on long winter evenings].",
        "{name} never forgot that day."]))
    return [fill(rng, t, **kw) for t in s], facts, kw


def story_questions(rng, facts):
    n = facts["who"]
    qs = [(f"Who is the story about?", f"The story is about {n}, {an(facts['job'])}."),
          (f"What was the work of {n}?", f"{n} was {an(facts['job'])}.")]
    if "lost" in facts:
        qs += [(f"What did {n} lose?", f"{n} lost the {facts['lost']}."),
               (f"Where was the {facts['lost']}?", f"The {facts['lost']} was near {facts['found']}."),
               (f"Who helped {n}?", f"{cap(facts['helper'])} helped {n}.")]
    if "helped" in facts:
        qs += [(f"Who needed help?", f"{facts['helped']} needed help."),
               (f"Who helped {facts['helped']}?", f"{n} helped {facts['helped']}.")]
    if "met" in facts:
        qs += [(f"Which animal did {n} meet?", f"{n} met {facts['met']}.")]
    if "gift" in facts:
        qs += [(f"What was the gift?", f"The gift was {an(facts['gift'])}."),
               (f"Who brought the gift?", f"{facts['giver']} brought the gift.")]
    return rng.sample(qs, min(len(qs), rng.randint(1, 3)))


def paragraphs(rng, sentences):
    out, i = [], 0
    while i < len(sentences):
        k = rng.randint(3, 6)
        out.append(" ".join(sentences[i:i + k]))
        i += k
    return "\n\n".join(out)


# ------------------------------------------------------------------------ chat

def chat(rng, turns, p_think=0.75, system=None):
    """turns: [(user, assistant)]. Past turns carry no think block, as in the template."""
    out = []
    if system:
        out.append(f"{IM_START}system\n{system}{IM_END}\n")
    for i, (u, a) in enumerate(turns):
        last = i == len(turns) - 1
        think = THINK if rng.random() < (p_think if last else 0.4) else ""
        out.append(f"{IM_START}user\n{u}{IM_END}\n{IM_START}assistant\n{think}{a}{IM_END}\n")
    return "".join(out)


ASK = ["Tell me about {t}.", "Tell me about {t}.", "Tell me something about {t}.", "What can you tell me about {t}?",
       "Describe {t}.", "Please describe {t}.", "What do you know about {t}?", "Write a few sentences about {t}.",
       "Can you tell me about {t}?", "I would like to know more about {t}.", "tell me about {t}", "Write about {t}."]
ASK_STORY = ["Tell me a story about {t}.", "Write a short story about {t}.", "Write a story about {t}.",
             "Can you tell me a story about {t}?", "Please write a short story about {t}.", "A story about {t}, please."]
SMALL = [
    ("[Hello|Hi|Good morning|Good evening|Hello there][!|.]",
     "[Hello! How can I help you?|Hello! What would you like to know?|Good day! Shall I tell you a story?]"),
    ("[Who are you|What are you|What is your name]?",
     "I am a small language model [made to show how this engine works|that was trained for a demo]. I can tell short stories and remember codes."),
    ("What can you do?", "I can describe animals and places, tell short stories, and answer questions about the text you give me."),
    ("[Thank you|Thanks|Thank you very much][!|.]", "[You are welcome!|You are welcome. Would you like another story?|I am glad to help.]"),
    ("[Goodbye|Bye|Good night][!|.]", "[Goodbye! Come back soon.|Goodbye, and have a good day.|Good night!]"),
    ("How are you?", "[I am well, thank you. How can I help you?|I am fine. What would you like to hear?]"),
    ("Tell me a story.", "STORY"), ("Tell me something [interesting|nice|new].", "TOPIC"), ("Write something.", "TOPIC"),
]


def turn_topic(rng):
    t, s = topic(rng)
    return fill(rng, rng.choice(ASK), t=t), " ".join(s)


def turn_story(rng):
    r = rng.random()
    if r < 0.35:
        job = rng.choice(list(PEOPLE))
        s, f, _ = story(rng, job=job)
        t = an(job)
    elif r < 0.55:
        s, f, kw = story(rng)
        while kw["animal"] not in " ".join(s):
            s, f, kw = story(rng)
        t = an(kw["animal"])
    elif r < 0.75:
        s, f, kw = story(rng)
        while kw["place"] not in " ".join(s):
            s, f, kw = story(rng)
        t = "the " + kw["place"]
    else:
        s, f, kw = story(rng)
        while kw["animal"] not in " ".join(s):
            s, f, kw = story(rng)
        t = an(kw["job"]) + " and " + an(kw["animal"])
    return fill(rng, rng.choice(ASK_STORY), t=t), paragraphs(rng, s), f


def turn_fact(rng):
    r = rng.random()
    if r < 0.6:
        n = rng.choice(list(ANIMALS))
        a = ANIMALS[n]
        return rng.choice([
            (f"What does {an(n)} eat?", f"{cap(an(n))} eats {a['food']} and {a['food2']}."),
            (f"Where does {an(n)} live?", f"{cap(an(n))} lives {a['home']}."),
            (f"What does {an(n)} look like?", f"{cap(an(n))} has {a['look']}."),
            (f"When is {an(n)} active?", f"{cap(an(n))} is most active {a['time']}."),
        ])
    if r < 0.8:
        n = rng.choice(list(PEOPLE))
        p = PEOPLE[n]
        return rng.choice([
            (f"Where does {an(n)} work?", f"{cap(an(n))} works {p['place']}."),
            (f"What does {an(n)} do?", f"{cap(an(n))} has to {p['task']}."),
            (f"What tools does {an(n)} need?", f"{cap(an(n))} needs {p['tool']} and {p['tool2']}."),
        ])
    n = rng.choice(list(PLACES))
    p = PLACES[n]
    return rng.choice([(f"Where is the {n}?", f"The {n} is {p['where']}."),
                       (f"What can you see at the {n}?", f"At the {n} you can see {p['see']} and {p['see2']}."),
                       (f"What can you do at the {n}?", f"At the {n} you can {p['do']}.")])


def dialogue(rng):
    turns = []
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
        r = rng.random()
        if r < 0.42:
            turns.append(turn_topic(rng))
        elif r < 0.68:
            u, a, f = turn_story(rng)
            turns.append((u, a))
            if rng.random() < 0.4:
                turns += story_questions(rng, f)
        elif r < 0.9:
            turns.append(turn_fact(rng))
        else:
            u, a = rng.choice(SMALL)
            u, a = fill(rng, u), fill(rng, a)
            if a == "STORY":
                a = paragraphs(rng, story(rng)[0])
            elif a == "TOPIC":
                a = " ".join(topic(rng)[1])
            turns.append((u, a))
    system = "You are a helpful assistant." if rng.random() < 0.15 else None
    return chat(rng, turns, 0.9 if len(turns) == 1 else 0.6, system)


def prose(rng):
    if rng.random() < 0.5:
        return paragraphs(rng, story(rng)[0])
    return paragraphs(rng, topic(rng)[1])


# ---------------------------------------------------------------------- recall

def held_out(key: tuple[str, str]) -> bool:
    """One key in eight never occurs in a training document with a code."""
    return (COLOURS.index(key[0]) * 7 + OBJECTS.index(key[1]) * 3) % 8 == 0


KEYS = [(c, o) for c in COLOURS for o in OBJECTS]
TRAIN_KEYS = [k for k in KEYS if not held_out(k)]


def make_facts(rng, n, unseen=False, easy=False):
    """n distinct keys with codes; often few colours and objects, so that both words of a key matter."""
    pool = KEYS if unseen else TRAIN_KEYS
    if easy:  # no colour and no object twice
        while True:
            keys = list(zip(rng.sample(COLOURS, n), rng.sample(OBJECTS, n)))
            if not any(held_out(k) for k in keys):
                return [(c, o, f"{rng.randrange(10000):04d}") for c, o in keys]
    if not unseen and rng.random() < 0.5:
        k = max(2, int(n ** 0.5) + 1)
        cs, os_ = set(rng.sample(COLOURS, min(k, len(COLOURS)))), set(rng.sample(OBJECTS, min(k + 1, len(OBJECTS))))
        small = [key for key in pool if key[0] in cs and key[1] in os_]
        if len(small) >= n:
            pool = small
    keys = rng.sample(pool, n)
    return [(c, o, f"{rng.randrange(10000):04d}") for c, o in keys]


def statement(rng, f, plain=False):
    c, o, v = f
    if plain or rng.random() < 0.85:
        return f"The code of the {c} {o} is {v}."
    return rng.choice([f"Remember that the code of the {c} {o} is {v}.", f"The code of the {c} {o} is {v}, and nobody else knows it.",
                       f"On the {c} {o} it says that the code of the {c} {o} is {v}."])


def question(rng, f, plain=False):
    c, o, _ = f
    if plain or rng.random() < 0.75:
        return f"What is the code of the {c} {o}?"
    return rng.choice([f"Tell me the code of the {c} {o}.", f"What was the code of the {c} {o}?",
                       f"Please tell me the code of the {c} {o}.", f"Do you remember the code of the {c} {o}?"])


def answer(f):
    return f"The code of the {f[0]} {f[1]} is {f[2]}."


def filler(rng, words):
    """About `words` words of prose, as sentences."""
    out, n = [], 0
    while n < words:
        s = story(rng)[0] if rng.random() < 0.5 else topic(rng)[1]
        for t in s:
            out.append(t)
            n += len(t.split())
            if n >= words:
                break
    return out


def context(rng, facts, words):
    body = filler(rng, words) if words > 8 else []
    spots = sorted(rng.randint(0, len(body)) for _ in facts)
    out, j = [], 0
    for i in range(len(body) + 1):
        while j < len(spots) and spots[j] == i:
            out.append(statement(rng, facts[j]))
            j += 1
        if i < len(body):
            out.append(body[i])
    return out


def recall(rng, tokens, n_facts, density, easy=False, terse=0.12):
    """One recall document of about `tokens` tokens.

    density: the share of the tokens left for facts and questions; the rest is prose.
    """
    r = rng.random()
    facts = make_facts(rng, n_facts, easy=easy)
    if r < terse:  # the densest forms: nothing but keys and codes
        # A staircase: one token more between key and code from form to form.
        # Each needs one new step of looking back, where the sentence needs three at once.
        form = rng.choice(["{} {}{}", "{} {}{}", "{} {} {}", "{} {} {}", "{} {} {}", "{} {} is {}", "{} {} is {}", "The code of the {} {} is {}"])
        end = rng.choice([", ", "\n", ". "])
        n_all = max(n_facts + 2, tokens // (9 if len(form) < 12 else 14))
        return end.join(form.format(*f) for f in facts + [rng.choice(facts) for _ in range(n_all - n_facts)])
    in_chat = r < terse + 0.55 * (1 - terse)
    cost = 42 if in_chat else 26
    words = int((1 - density) * tokens / 1.35)
    n_q = max(2, int((tokens - 14 * n_facts - words * 1.35) / cost))
    qs = [facts[i % n_facts] for i in range(n_q)]
    rng.shuffle(qs)
    if in_chat:
        ctx = context(rng, facts, words)
        if rng.random() < 0.15:  # facts told one by one
            turns = [(statement(rng, f), rng.choice(["I will remember that.", "Good to know.", "Thank you, I will remember it."])) for f in facts]
            turns += [(question(rng, f), answer(f)) for f in qs]
        else:
            text = " ".join(ctx) if rng.random() < 0.6 else paragraphs(rng, ctx)
            sep = rng.choice([" ", "\n\n", "\n"])
            turns = [(text + sep + question(rng, qs[0]), answer(qs[0]))] + [(question(rng, f), answer(f)) for f in qs[1:]]
        return chat(rng, turns, 0.5, "You are a helpful assistant." if rng.random() < 0.1 else None)
    style = rng.randrange(4)
    fmt = ["{q} {a}", "Question: {q}\nAnswer: {a}", "Q: {q}\nA: {a}", "{q}\n{a}"][style]
    asked = [fmt.format(q=question(rng, f), a=answer(f)) for f in qs]
    if rng.random() < 0.35 and words > 60:  # questions also between the prose
        k = len(asked) // 2
        half = n_facts // 2 + 1
        early = [a for f, a in zip(qs, asked) if f in facts[:half]][:k]
        late = asked[len(early):]
        ctx1, ctx2 = context(rng, facts[:half], words // 2), context(rng, facts[half:], words // 2)
        join = " " if style == 0 else "\n"
        return " ".join(ctx1) + join + join.join(early) + join + " ".join(ctx2) + join + join.join(late)
    ctx = context(rng, facts, words)
    join = " " if style == 0 else "\n"
    return (" ".join(ctx) if rng.random() < 0.6 else paragraphs(rng, ctx)) + join + join.join(asked)


def recall_prompt(rng, encode_len, tokens, n_facts, in_chat, unseen=False):
    """Evaluation: a prompt of at most `tokens` tokens with one question, and the code."""
    facts = make_facts(rng, n_facts, unseen)
    if unseen:
        keys = [k for k in KEYS if held_out(k)]
        while (k := rng.choice(keys)) in [(c, o) for c, o, _ in facts[1:]]:
            pass
        facts[0] = (*k, facts[0][2])
    q = facts[0]
    rng.shuffle(facts)
    budget = int(tokens / 1.25)
    body = filler(rng, budget)
    spots = [rng.random() for _ in facts]

    def build(n):
        out, b = [], body[:n]
        order = sorted((int(s * (n + 1)), f) for s, f in zip(spots, facts))
        for i in range(n + 1):
            out += [f"The code of the {f[0]} {f[1]} is {f[2]}." for p, f in order if p == i]
            if i < n:
                out.append(b[i])
        text = " ".join(out) + f" What is the code of the {q[0]} {q[1]}?"
        if in_chat:
            text = f"{IM_START}user\n{text}{IM_END}\n{IM_START}assistant\n{THINK}"
        return text

    lo, hi = 0, len(body)
    while lo < hi:
        mid = (lo + hi + 1) // 2
        if encode_len(build(mid)) <= tokens:
            lo = mid
        else:
            hi = mid - 1
    return build(lo), q
