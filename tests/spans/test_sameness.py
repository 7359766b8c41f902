"""Passages that are 75 to 99 % alike and do not mean the same, and some that do."""

import pytest

from t2g_jax.spans.align import align

BEFORE, AFTER = "We begin with an overview of the matter. ", " That is all for today."

UNLIKE = r"""
It is safe to run this command on the production server.
    It is not safe to run this command on the production server.
It is safe to run this command on the production server.
    It isn't safe to run this command on the production server.
the temperature dropped to 5 degrees during the night shift
    the temperature dropped to −5 degrees during the night shift
the value of the first entry x < y holds for all the rows
    the value of the first entry x > y holds for all the rows
the algorithm always terminates on finite graphs
    the algorithm sometimes terminates on finite graphs
the loss function will increase over the training steps
    the loss function will decrease over the training steps
you should include the header files in the build
    you should exclude the header files in the build
there is a causal relation between the two variables
    there is a casual relation between the two variables
this is a legal move in the position shown above
    this is an illegal move in the position shown above
this makes it possible to solve the puzzle quickly
    this makes it impossible to solve the puzzle quickly
the user was happy with the result of the experiment
    the user was unhappy with the result of the experiment
the answer must be accepted before the deadline passes
    the answer must be accepted after the deadline passes
you may enter the building through the back door
    you must enter the building through the back door
turn the switch on before you touch the wires
    turn the switch off before you touch the wires
the price went up by ten percent over last year
    the price went down by ten percent over last year
all of the tests in the suite passed this morning
    any of the tests in the suite passed this morning
both conditions and their negations hold here
    both conditions or their negations hold here
the total comes to 12 apples and 3 pears
    the total comes to 12 apples and 30 pears
the total comes to 1.5 million dollars a year
    the total comes to 15 million dollars a year
the total comes to $15 per month and user
    the total comes to €15 per month and user
the growth rate was 5% over the last decade
    the growth rate was 5‰ over the last decade
the area grows with x² in the size of the box
    the area grows with x2 in the size of the box
the area grows with x² in the size of the box
    the area grows with x³ in the size of the box
please submit your resume to the hiring committee
    please submit your résumé to the hiring committee
这个命令在生产服务器上运行是安全的,请放心使用
    这个命令在生产服务器上运行是不安全的,请放心使用
The function returns a + b for all inputs given
    The function returns a - b for all inputs given
The function returns a * b for all inputs given
    The function returns a / b for all inputs given
if (x == y) { return value; } else { return other; }
    if (x != y) { return value; } else { return other; }
for i in range(len(values)): total += values[i]
    for i in range(len(values)): total += value[i]
result = compute_total(items, tax_rate)
    result = compute_totals(items, tax_rate)
the patient can eat peanuts without any reaction
    the patient can't eat peanuts without any reaction
the patient cannot eat peanuts at the hospital
    the patient can eat peanuts at the hospital
the drug helps with pain in most patients
    the drug helps without pain in most patients
two thirds of the voters supported the measure
    three thirds of the voters supported the measure
the first of the proofs is complete and correct
    the third of the proofs is complete and correct
World War II started in the year described here
    World War III started in the year described here
the quick brown fox jumps over the lazy dog
    the quick brown fox jumps over the lazy cat
the quick brown fox jumps over the lazy dog
    the quick brown fox jumps over the dog
the mediation helped the couple to recover
    the meditation helped the couple to recover
the conservation of the forest was very important
    the conversation of the forest was very important
the patient shows signs of hypertension at rest
    the patient shows signs of hypotension at rest
the material is inflammable according to the label
    the material is flammable according to the label
the file is readable by every user on the system
    the file is unreadable by every user on the system
the answer is nonnegative for all real inputs
    the answer is negative for all real inputs
the answer is non-negative for all real inputs
    the answer is negative for all real inputs
there is no reason to doubt the result here
    there is reason to doubt the result here
he never agreed to the terms of the contract
    he ever agreed to the terms of the contract
more than half of the class passed the exam
    less than half of the class passed the exam
the meeting is at 3 am on Monday in the office
    the meeting is at 3 pm on Monday in the office
it weighs 5 mg when it is dry and clean
    it weighs 5 kg when it is dry and clean
the power is 5 mW at the output of the laser
    the power is 5 MW at the output of the laser
the US troops moved to the north of the city
    the us troops moved to the north of the city
we trust the process and the people behind it
    we trust the process and the people before it
the loss is 1e-3 after the first ten epochs
    the loss is 1e3 after the first ten epochs
the loss is 1e-3 after the first ten epochs
    the loss is 1e-5 after the first ten epochs
the set A ∪ B contains the element we look for
    the set A ∩ B contains the element we look for
for all x ∈ S the claim holds as we have shown
    for all x ∉ S the claim holds as we have shown
the statement ¬p holds in all of the models here
    the statement p holds in all of the models here
he was killing the intruder in the dark room
    he was killed the intruder in the dark room
x is greater than y in all of the cases
    y is greater than x in all of the cases
Alice pays Bob ten dollars for the old bicycle
    Bob pays Alice ten dollars for the old bicycle
the result is 3/4 of the original amount paid
    the result is 3/5 of the original amount paid
the result is correct!
    the result is incorrect!
the careful driver stopped at the crossing
    the careless driver stopped at the crossing
the employer paid the full amount in cash
    the employee paid the full amount in cash
he goes to school from the station every day
    he goes from school to the station every day
the symmetric matrix has real eigenvalues only
    the asymmetric matrix has real eigenvalues only
it is unlikely that the proof is complete today
    it is likely that the proof is complete today
the value n is the number of rows in the table
    the value N is the number of rows in the table
the key `maxValue` is set to the default value
    the key `minValue` is set to the default value
Is it safe to drink the water from this well?
    It is safe to drink the water from this well.
the answer is that it is safe to drink it?
    the answer is that it is safe to drink it
she gave him 1,000 dollars for the old piano
    she gave him 1.000 dollars for the old piano
ich habe keine Zeit für das Treffen am Montag
    ich habe eine Zeit für das Treffen am Montag
je ne veux pas aller à la maison ce soir
    je veux aller à la maison ce soir
это безопасно для всех пользователей системы
    это небезопасно для всех пользователей системы
Temperature ≥ 30 is required for the reaction to run
    Temperature ≤ 30 is required for the reaction to run
Only adults may enter the hall without a ticket
    adults may only enter the hall without a ticket
he did it if she agreed to the proposal at hand
    he did it unless she agreed to the proposal at hand
the experiment was successful in every respect 👍
    the experiment was successful in every respect 👎
few people know about the hidden entrance here
    a few people know about the hidden entrance here
print("hello world") # greets the user politely
    print("hello  world") # greets the user politely
let's eat, grandma, before the food gets cold
    let's eat grandma, before the food gets cold
the current now here is enough for the lamps
    the current nowhere is enough for the lamps
the limit as x → 0 of the function is finite
    the limit as x → ∞ of the function is finite
it was last updated on 2021-03-04 by the team
    it was last updated on 2021-04-03 by the team
See section 3.2.1 for the details of the proof
    See section 3.2.2 for the details of the proof
the pH of the solution rises to 7 in the end
    the pH of the solution rises to 7.5 in the end
the probability is at least one half in this case
    the probability is at most one half in this case
we use ethane as the fuel in the experiment
    we use ethene as the fuel in the experiment
the graph is directed and has no cycles at all
    the graph is undirected and has no cycles at all
the sulfate was dissolved in the water tank
    the sulfite was dissolved in the water tank
O(n log n) comparisons are needed in the worst case
    O(n log m) comparisons are needed in the worst case
the boy who lived with his aunt was very kind
    the buoy who lived with his aunt was very kind
The variable `x_max` holds the largest entry seen
    The variable `x_min` holds the largest entry seen
the cache must not be flushed, since it is shared
    the cache must now be flushed, since it is shared
the rate is 0.5 per second in the second trial
    the rate is .05 per second in the second trial
he did well on the exam in the third semester
    he did ill on the exam in the third semester
the valve is opened when the pressure is high
    the valve is closed when the pressure is high
nobody knows the answer to this old riddle
    everybody knows the answer to this old riddle
the model is underfitting on the training data
    the model is overfitting on the training data
the array is sorted in ascending order by key
    the array is sorted in descending order by key
the vaccine is effective against the new variant
    the vaccine is ineffective against the new variant
the upper bound is tight for every input size
    the lower bound is tight for every input size
the left child of the node holds a smaller key
    the right child of the node holds a smaller key
i++ is evaluated before the comparison is made
    i-- is evaluated before the comparison is made
the mean of the sample is 12.5 ± 0.3 units
    the mean of the sample is 12.5 ± 0.8 units
it is a moral question that each must answer
    it is an amoral question that each must answer
return a and b, since both flags must be set
    return a or b, since both flags must be set
x = y * 2  # double the given value
    x = y ** 2  # double the given value
if not is_valid(token): raise ValueError(token)
    if is_valid(token): raise ValueError(token)
assert result is None, message
    assert result is not None, message
const total = items.length - 1;
    const total = items.length + 1;
let isReady = true; let isDone = false;
    let isReady = false; let isDone = true;
SELECT name FROM users WHERE age > 30
    SELECT name FROM users WHERE age < 30
SELECT name FROM users WHERE age > 30
    SELECT names FROM users WHERE age > 30
def getValue(self): return self.value
    def getvalue(self): return self.value
\frac{a}{b} is the slope of the line in question
    \frac{b}{a} is the slope of the line in question
the sum $a_1 + a_2$ is at most the bound given
    the sum $a_1 - a_2$ is at most the bound given
Bob is taller than Alice by several inches
    Alice is taller than Bob by several inches
the deal was signed in 1998 by both of the parties
    the deal was signed in 1989 by both of the parties
the drug was prescribed to all of the patients
    the drug was proscribed to all of the patients
the data were adapted to the needs of the users
    the data were adopted to the needs of the users
this confirms the hypothesis stated at the start
    this confirms the antithesis stated at the start
he was disinterested in the outcome of the trial
    he was uninterested in the outcome of the trial
the device is waterproof to a depth of 5 m
    the device is waterproof to a depth of 5 km
temperatures of 20 °C are normal for the season
    temperatures of 20 °F are normal for the season
the train leaves at 10:30 from platform two
    the train leaves at 10:50 from platform two
the odds are 3:1 in favor of the home team
    the odds are 1:3 in favor of the home team
Adam said that the door had been locked
    Adams said that the door had been locked
we met Williams at the gate of the park
    we met William at the gate of the park
the painting is a genuine work by the master
    the painting is a fake work by the master
the meeting was canceled, not postponed, today
    the meeting was postponed, not canceled, today
他没有去学校参加今天的数学考试
    他有去学校参加今天的数学考试
彼は学校に行きます、毎日の朝に必ず
    彼は学校に行きません、毎日の朝に必ず
학교에 가지 않습니다 매일 아침에 꼭
    학교에 가지 습니다 매일 아침에 꼭
Türkiye'de hava bugün çok güzeldir
    Türkiye'de hava bugün çok güzel değildir
El paciente no puede comer los alimentos
    El paciente puede comer los alimentos
Der Patient darf nicht ohne Arzt essen
    Der Patient darf ohne Arzt essen
the sign of the determinant is (−1)^n here now
    the sign of the determinant is (1)^n here now
the value 2^10 is reached after ten rounds
    the value 2*10 is reached after ten rounds
A ⊂ B holds for each of the sets considered
    A ⊃ B holds for each of the sets considered
P → Q is a tautology in the given system
    P ↔ Q is a tautology in the given system
the tenth of the items in the list is broken
    the tenths of the items in the list is broken
the pace was slow, hardly enough to win it
    the pace was slow, hard enough to win it
she is scarcely able to finish the long race
    she is able to finish the long race
it barely compiles under the new settings
    it compiles under the new settings
the process is reversible under the conditions
    the process is irreversible under the conditions
the function is continuous on the closed interval
    the function is discontinuous on the closed interval
the bank approved the loan yesterday morning
    the bank disapproved the loan yesterday morning
the sentence is grammatical in most dialects
    the sentence is ungrammatical in most dialects
the results are typical of the whole class
    the results are atypical of the whole class
the key is encrypted before it is sent on
    the key is decrypted before it is sent on
the user is authenticated by the new server
    the user is unauthenticated by the new server
the substance is hydrophilic in its pure state
    the substance is hydrophobic in its pure state
the plan costs £20 per month for each seat
    the plan costs €20 per month for each seat
the plan costs 20 per month for each seat
    the plan costs £20 per month for each seat
turn left at the second light, then stop
    turn left at the second light then stop
the net force is 1/2 m v² in this case
    the net force is ½ m v² in this case
gene A inhibits gene B in all of the cells
    gene A inhabits gene B in all of the cells
the rise in temperature was significant here
    the raise in temperature was significant here
the law was repealed by the new government
    the law was repeated by the new government
the stationary car was hit from behind
    the stationery car was hit from behind
The soloist sang the aria rather loudly
    The soloist sank the aria rather loudly
the proof is complete, except for one lemma
    the proof is complete, accept for one lemma
the lemma is trivial. Not so the theorem itself
    the lemma is trivial not. So the theorem itself
you can see it, can you
    you can see it, can't you
no, it is safe to touch the wire right now
    no it is safe to touch the wire right now
the flag -v is passed to the tool at the start
    the flag --v is passed to the tool at the start
the flag --cache is passed to the tool at the start
    the flag cache is passed to the tool at the start
the profit is price - cost in the second row
    the profit is price cost in the second row
f'' is positive in the second of the cases
    f' is positive in the second of the cases
the mean of the sample is 1,2 in the second row
    the mean of the sample is 1, 2 in the second row
the population is 1,234,567 as of the last census
    the population is 1,234,576 as of the last census
they had to re-sign the papers on the next day
    they had to resign the papers on the next day
x = a && b ? c : d;
    x = a || b ? c : d;
x <<= 1
    x >>= 1
x = not y
    x = y
return True
    return False
a == b
    a = b
{"a": true}
    {"a": false}
\forall x \exists y
    \exists x \forall y
| a | 1 | 2 |
    | a | 2 | 1 |
rm -rf /tmp/build
    rm -r /tmp/build
لا يجوز الدخول إلى المبنى بعد الساعة العاشرة
    يجوز الدخول إلى المبنى بعد الساعة العاشرة
عدد الطلاب ٢٥ في الصف الأول من المدرسة
    عدد الطلاب ٥٢ في الصف الأول من المدرسة
यह आदेश सर्वर पर चलाना सुरक्षित है
    यह आदेश सर्वर पर चलाना सुरक्षित नहीं है
ยานี้ปลอดภัยสำหรับเด็กทุกคน
    ยานี้ไม่ปลอดภัยสำหรับเด็กทุกคน
"""

ALIKE = r"""
the algorithm terminates on all finite graphs
    the  algorithm terminates\n on all finite graphs
the algorithm terminates on all finite graphs
    The Algorithm Terminates on All Finite Graphs
the algorithm terminates on all finite graphs
    the algorithim terminates on all finite graphs
she said “it is fine” and then left the room
    she said "it is fine" and then left the room
she said “it is fine” and then left the room
    she said it is fine and then left the room
a well-known result from the theory of graphs
    a well known result from the theory of graphs
a well—known result – from the theory of graphs
    a well-known result - from the theory of graphs
and then … he left the building without a word
    and then ... he left the building without a word
and then he left the building without a word
    and then... he left the building without a word
he repeats the lines of the poem every day
    he repeated the line of the poem every day
the engineers consider it a triumph of design
    the engineers considered it a triumph of design
the important detail is missing from the report
    the importnat detail is missing from the report
we recieved the package on the third of May
    we received the package on the third of May
the temperature is −5 degrees in the morning
    the temperature is -5 degrees in the morning
the equation a+b=c is solved for the variable
    the equation a + b = c is solved for the variable
if (x == y) { return value; }
    if(x==y){return value;}
for i in range(10):\n    total += values[i]
    for i in range(10): total += values[i]
the answer is **clearly** visible in the table
    the answer is clearly visible in the table
the `value` parameter is set to the default
    the value parameter is set to the default
the café near the station is open on Sunday
    the café near the station is open on Sunday
the ﬁrst ﬁgure shows the loss of the model
    the first figure shows the loss of the model
full width ＡＢＣ letters are used in the title
    full width ABC letters are used in the title
the results, which were surprising, are shown below
    “the results, which were surprising, are shown below.”
the white space does not matter to the parser here
    the whitespace does not matter to the parser here
The dog's bone was found in the garden of Alice
    the dogs bone was found in the garden of Alice
dashes — like this one — are often misquoted
    dashes – like this one – are often misquoted
dashes—like this one—are often misquoted
    dashes -- like this one -- are often misquoted
the 10 km run was cancelled because of the rain
    the 10km run was cancelled because of the rain
the accommodation was excellent and very cheap
    the accomodation was excellent and very cheap
definitely the best solution for this problem
    definately the best solution for this problem
it’s the best solution for this problem
    it's the best solution for this problem
THE ALGORITHM TERMINATES ON FINITE GRAPHS
    the algorithm terminates on finite graphs
…and the algorithm terminates on finite graphs…
    ...and the algorithm terminates on finite graphs...
she said ‹it is fine› and then left the room
    she said 'it is fine' and then left the room
she said 「it is fine」 and then left the room
    she said "it is fine" and then left the room
she said ``it is fine'' and then left the room
    she said "it is fine" and then left the room
the valve is *very* important in all of the plants
    the valve is very important in all of the plants
the valve is ***very*** important in all of the plants
    the valve is very important in all of the plants
please co-operate with the police in this matter
    please cooperate with the police in this matter
the e-mail address is shown at the top of the page
    the email address is shown at the top of the page
{"a":1,"b":[1,2]}
    { "a": 1, "b": [1, 2] }
we say “the cost” — in other words, the price — twice
    we say "the cost" -- in other words, the price -- twice
"""


# With characters that nobody sees.
UNLIKE_SEEN = [
    (
        "press 1\ufe0f\u20e3 to go on to the next page",
        "press 2\ufe0f\u20e3 to go on to the next page",
    ),
    (
        "the word \u202eabc\u202c is at the end of the text",
        "the word abc is at the end of the text",
    ),
    (
        "the match was won by \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e007f last year",
        "the match was won by \U0001f3f4\U000e0067\U000e0062\U000e0073\U000e007f last year",
    ),
]
ALIKE_SEEN = [
    ("zero\u200cwidth joiners are not seen in a text", "zerowidth joiners are not seen in a text"),
    (
        "left\u200e to right marks are not seen in a text",
        "left to right marks are not seen in a text",
    ),
    ("an \u2066isolated\u2069 word is shown as it is", "an isolated word is shown as it is"),
    ("press 1\ufe0f\u20e3 to go on to the next page", "press 1\u20e3 to go on to the next page"),
    ("he won\u02bct agree to the terms of it all", "he won't agree to the terms of it all"),
    ("the entry x1\u200b of the list is not there", "the entry x1 of the list is not there"),
]


def pairs(block):
    lines = [line.strip().replace("\\n", "\n") for line in block.strip().splitlines()]
    return both_ways(list(zip(lines[::2], lines[1::2], strict=True)))


def both_ways(some):
    return some + [(right, left) for left, right in some]


@pytest.mark.parametrize(("passage", "quote"), pairs(UNLIKE) + both_ways(UNLIKE_SEEN))
def test_a_passage_that_says_something_else_is_not_the_quoted_one(passage, quote):
    for text in (passage, BEFORE + passage + AFTER):
        if quote not in text:
            alignment = align(text, [quote])
            assert alignment.spans == ()
            assert "differs in: " in alignment.unaligned[0].reason


@pytest.mark.parametrize(("passage", "quote"), pairs(ALIKE) + both_ways(ALIKE_SEEN))
def test_a_passage_that_can_only_say_the_same_is_the_quoted_one(passage, quote):
    for text in (passage, BEFORE + passage + AFTER):
        (span,) = align(text, [quote]).spans
        marks = ' ."“”…'
        assert text[span.start : span.end].strip(marks) == passage.strip(marks)
        assert span.score >= 90


def test_the_reason_names_what_differs_and_is_short():
    text = "It is not safe to run the new program on the old machine."

    def reason(quote, text=text):
        return align(text, [quote]).unaligned[0].reason

    assert reason("It is safe to run the new program on the old machine").endswith(": 'not'")
    assert reason("It is not safe to run the new program on an old machine").endswith(
        "differs in: 'an' / 'the'"
    )
    assert reason("It was not safe to run the old program on that slow machine").endswith(
        "differs in: 'was' / 'is', 'old' / 'new', 'that' / 'the', …"
    )
    long = "x" * 500
    assert len(reason(f"the word {long}y is here", f"the word {long} is here")) < 200


def test_case_counts_where_it_tells_words_apart():
    for text, quote in (
        ("the US is far from here", "the us is far from here"),
        ("a power of 5 mW is enough", "a power of 5 MW is enough"),
        ("let n be the number of rows", "let N be the number of rows"),
        ("the entry x1 of the list", "the entry X1 of the list"),
        ("value = getValue(x)", "value = getvalue(x)"),
        ("the option maxValue is set here", "the option maxvalue is set here"),
        ("it is 5 mm from the edge of it", "it is 5 MM from the edge of it"),
        ("it is 5 MM from the edge of it", "it is 5 mm from the edge of it"),
        ("use json.load to read the file of results", "use json.loads to read the file of results"),
        ("the function os.remove deletes it", "the function os.removed deletes it"),
        ("the failing test is src/test/run.py", "the failing test is src/tests/run.py"),
        ("write to help@example.org today", "write to helps@example.org today"),
        ("call it with --allow-file and a name", "call it with --allow-files and a name"),
    ):
        assert "differs in: " in align(text, [quote]).unaligned[0].reason
    assert align("THE US IS FAR FROM HERE", ["the us is far from here"]).spans
    assert align("Vitamin A is in it", ["vitamin a is in it"]).spans


def test_in_code_every_character_but_white_space_counts():
    text = "So we write\n```\nfor item in items:\n    print(item, 'a  b')\n```\nand are done."
    assert align(text, ["for item in items: print( item, 'a  b' )"]).spans
    for quote in (
        "for item in items:\n    print(item, 'a b')",
        "for item in items:\n    print(items, 'a  b')",
        'for item in items:\n    print(item, "a  b")',
        "for item in items\n    print(item, 'a  b')",
        "for Item in items:\n    print(Item, 'a  b')",
    ):
        assert "differs in: " in align(text, [quote]).unaligned[0].reason
