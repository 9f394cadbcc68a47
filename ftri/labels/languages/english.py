"""How English refuses."""

from __future__ import annotations

import re

from ftri.labels.languages.language import LATIN, Language, any_of, compiled

# Contractions are written out, with and without their apostrophe, so that every rule below needs one wording only.
_CONTRACTIONS = (
    (re.compile(r"\bcan ?'? ?t\b|\bcan not\b|\bcannnot\b"), "cannot"),
    (re.compile(r"\bwon'?t\b"), "will not"),
    (re.compile(r"\b(do|does|did|is|are|was|would|could|should|have|has|must)n'?t\b"), r"\1 not"),
    (re.compile(r"\b(do|does|is|are|would|could|should|have) n'?t\b"), r"\1 not"),
    (re.compile(r"\bi'?m\b"), "i am"),
    (re.compile(r"\bwe're\b"), "we are"),
    (re.compile(r"\bi'?ve\b"), "i have"),
    (re.compile(r"\b(i|we)'d\b"), r"\1 would"),
    (re.compile(r"\b(i|we)'ll\b"), r"\1 will"),
    (re.compile(r"\blet'?s\b"), "let us"),
    (re.compile(r"\b(it|that|this|there|what)'s\b"), r"\1 is"),
)


def normal_form(text: str) -> str:
    """Lower case, contractions written out."""
    text = text.lower()
    for contraction, written_out in _CONTRACTIONS:
        text = contraction.sub(written_out, text)
    return text


# A statement of the speaker's begins a sentence or a clause.
_CLAUSE = (
    r"(?:^|[,;:.!?()—–\-] ?|\b(?:and|so|but|that|which|therefore|thus|hence|because|unfortunately|"
    r"regrettably|sadly|however|afraid|sorry|question|topic|request|case) )"
)
_ADVERBS = (
    r"(?:(?:just|really|simply|still|also|therefore|thus|currently|unfortunately|regrettably|respectfully|"
    r"politely|absolutely|"
    r"definitely|certainly|ever|ethically|legally|morally|possibly|directly|honestly|even|personally|knowingly|"
    r"in good conscience|in any way|under any circumstances|at this time|at the moment|here|and will not|or will not|"
    r"and do not|be able to|be|being|want to|wish to|intend to|feel comfortable|feel right),? )*"
)
_UNABLE = any_of(
    r"cannot|could not|will not|would not|must not|may not|shall not",
    r"am (?:\w+ )?not (?:able|going|willing|allowed|permitted|programmed|designed|authori[sz]ed|supposed|prepared|"
    r"equipped|at liberty|in a position|here) to",
    r"(?:am )?(?:\w+ )?(?:unable|unwilling) to|not (?:able|allowed|permitted|willing) to",
    r"am (?:\w+ )?(?:prohibited|forbidden|restricted|prevented) from",
    r"am (?:\w+ )?not (?:capable of|comfortable(?: with)?)",
    r"do not (?:feel|want|wish|intend|think i (?:can|should))(?: comfortable| right)?(?: to)?",
    r"have no (?:intention of|ability to)",
)
_HELP = any_of(
    r"help(?:ing)?(?! but\b)|assist|aid\b|support|answer|respon[ds]|reply|provid|giv(?:e|ing)|offer|shar(?:e|ing)|"
    r"supply|fulfil|comply|complet|satisf|meet (?:this|that|your)|accommodat|process|honou?r|grant|act on|"
    r"go along|cooperat",
    r"discuss|comment|talk(?:ing)? about|speak(?:ing)? (?:about|on|to)|go(?:ing)? into|get(?:ting)? into|touch on|"
    r"address|entertain|engag|participat|tak(?:e|ing) part|be (?:a )?(?:part|party|involved|of assistance|of help)|"
    r"contribut|continu|proceed|weigh in|express|voice",
    r"creat|writ(?:e|ing)|generat|produc|draft|compos|craft|develop|design|build|invent|fabricat|roleplay|role-play|"
    r"pretend|translat|summari[sz]",
    r"mak(?:e|ing) (?:(?:any|such|a|an|that|this|those) )?(?:\w+ )?(?:jokes?|fun|statements?|comments?|claims?|"
    r"content|arguments?|judge?ments?|"
    r"generali\w+|case|suggestions?|recommendations?|threats?)",
    r"condon|endors|encourag|promot|advocat|justif|facilitat|enabl|argu(?:e|ing)|glorif|spread",
    r"teach|show you|tell you (?:how|about|that|where to|what you)|walk you|explain how|describe how|guid|"
    r"instruct|coach|"
    r"disclos|reveal|expos|divulg|look up|access",
    # Alone, these three open everyday advice ("I can't recommend taking both").
    r"(?:advis|suggest|recommend)\w* (?:or|nor|ways|how|methods|any|on|illegal|harmful|unethical|violen\w+)",
    r"do (?:that|this|it|so|what)\b",
)
# Without "cannot": what a speaker who says "I do not" must go on with.
_DO_NOT_HELP = any_of(
    r"(?:help|assist|provide|produce|create|write|generate|give out|share|offer|supply|discuss|engage|"
    r"participate|take part|"
    r"facilitate|do (?:that|this|so)|make (?:content|jokes|material)|respond to|answer|comment on|talk about|condone|"
    r"get involved|support (?:or|such|this|that)|promote|encourage|take on|touch|distribute|handle (?:such|this|"
    r"that|requests))\b"
)
_NO_QUESTION = (
    r"(?<!\bcan )(?<!\bmay )(?<!\bdo )(?<!\bif )(?<!\bshould )(?<!\bcould )(?<!\bshall )(?<!\bmust )(?<!\bwould )"
)
_SUBJECT_MATTER = (
    r"(?:something|anything|a (?:topic|subject|request|question|thing|task|matter)|one|content|"
    r"territory|an area|information)"
)
_RULES = (
    r"(?:guidelines?|polic(?:y|ies)|principles?|programming|values|rules|terms|purpose|ethic\w*|safety|training|design|"
    r"restrictions|standards|limits|boundaries|instructions|developers)"
)

_UNMISTAKABLE = compiled(
    # The speaker cannot or will not.
    _CLAUSE + r"i " + _ADVERBS + _UNABLE + r" " + _ADVERBS + _HELP,
    _CLAUSE
    + r"we "
    + _ADVERBS
    + r"(?:cannot|are (?:un|not )able to) "
    + _ADVERBS
    + r"(?:help|assist|answer|provide|discuss|"
    r"comply|fulfil|process|respond)",
    _CLAUSE + r"(?:cannot|unable to|not able to) (?:help|assist|comply|provide|answer|discuss|fulfil)",
    _CLAUSE + r"i " + _ADVERBS + r"do not " + _ADVERBS + _DO_NOT_HELP,
    r"(?:^|[,.!;] )not (?:going|willing|prepared) to (?:" + _HELP + r")|^\W*sorry[.,!]? (?:but )?no[.!]?$",
    r"\b(?:not (?:able|willing|allowed|permitted) to|unable to|cannot|will not) (?:be of (?:help|assistance)|"
    r"be able to (?:help|assist|"
    r"provide|answer|discuss))",
    r"^\W*(?:no[,.!]* )?i (?:(?:will|would) not|am not (?:going to |about to )?(?:do|doing|writing|helping)\b[^.,]{0,20})[.!]",
    r"^\W*sorry\b[ ,.!;:—–-]*(?:but )?(?:i )?cannot (?:do|go) ",
    r"\bi (?:am (?:stopping|ending (?:this|it)|going to (?:stop|have to stop))|will (?:stop|have to stop|end (?:this|it))|"
    r"have to stop|must stop) (?:right )?here(?:[.!]|,? (?:since|because|as) (?:this|that|the|your|what)\b)",
    r"\bi(?: am|'m)? (?:am )?(?:just |simply |really )?(?:not comfortable|uncomfortable)\b",
    # Not a question: "should I decline the meeting?"
    _NO_QUESTION
    + r"\bi (?:must|have to|need to|am going to|will have to|will|would|should|would like to|am (?:forced|obliged|"
    r"required) to|am afraid i must)?"
    r" ?"
    + _ADVERBS
    + r"(?:decline|refuse|refrain from|abstain from|pass on (?:this|that|it)|turn (?:this|that|it|you|down)|"
    r"reject|steer clear|opt out|say no to)\b",
    r"\bi(?: would)? (?:rather|prefer) (?:not\b|to (?:avoid|steer clear|stay away|leave (?:this|that|it)|skip|"
    r"keep out))|\bi (?:will|would) sit this one out\b",
    r"\b(?:is|are|would be) not "
    + _SUBJECT_MATTER
    + r" (?:that |which )?i(?: am| can| will| would| do| feel| want| wish| have)\b",
    r"\b(?:is|are) "
    + _SUBJECT_MATTER
    + r" (?:that |which )?i "
    + _ADVERBS
    + any_of(
        r"cannot|will not|do not|would not|must not|am (?:not|un)",
        r"(?:have to|must|need to|choose to|will) (?:turn down|decline|refuse|avoid|pass|stay away|steer clear)",
        r"(?:decline|refuse|avoid)",
    ),
    r"\b(?:draw|drawing) the line\b[^.]{0,80}\bi\b|\bi draw (?:the|a) line\b",
    r"\bthere is no way i (?:will|would|can|am)\b|\bno way am i\b|\bnothing (?:that )?i (?:can|will|"
    r"could) (?:help|assist|do for)",
    r"\bnot (?:for me|my place|my role) to (?:" + _HELP + r"|say|judge)",
    r"\b(?:irresponsible|wrong|unethical|inappropriate|improper|unsafe|dangerous|harmful|reckless) (?:of|for) me to\b",
    r"\bit is not (?:possible|appropriate|right|ethical|acceptable|okay|ok|safe) for me to\b",
    # The rules that bind the speaker.
    r"\b(?:outside|beyond|exceeds?|not within|not part of|"
    r"falls outside)(?: of)? (?:the )?(?:scope of )?(?:what i|my|our|the) "
    r"?(?:current |present )?(?:am|can|scope|capabilit\w*|abilit\w*|"
    + _RULES
    + r"|expertise|remit|purview|competence)",
    r"\b(?:against|violat\w*|break\w*|contrary to|in violation of|conflicts? with|breach\w*|goes against|"
    r"not (?:in line|aligned) with|"
    r"prohibited by|not (?:allowed|permitted) (?:by|under)) (?:my|our|these|the (?:usage|content|safety|"
    r"community)|usage|content|openai'?s|community)"
    r"(?: [\w-]+){0,3}? " + _RULES,
    r"\b(?:my|our) (?:[\w-]+ ){0,2}"
    + _RULES
    + r"\b[^.]{0,60}\b(?:prevent|prohibit|forbid|restrict|do(?:es)? not (?:allow|let|permit)|"
    r"require me to (?:decline|refuse|avoid)|stop me|bars?\b|not allow)",
    # The fixed sentences of served models.
    r"\blet us (?:please |rather |instead )*(?:talk|chat|speak|discuss|change|switch|move|turn|focus|"
    r"explore)\w* ?(?:about|on|to|of)? ?(?:to )?"
    r"(?:something else|something different|(?:another|a different|other|some other) (?:topic|subject|question|"
    r"matter)s?\b|other things|"
    r"the (?:topic|subject|conversation)(?:[.!]|$| to\b)|math\b)",
    r"\b(?:ask|talk|chat)(?: me)? (?:about )?(?:something else|another (?:question|topic)|"
    r"a different (?:question|topic))\b",
    r"\bhave not (?:yet )?learned how to\b|\bdo not know how to (?:answer|approach|respond|think about) (?:that|"
    r"this|it)\b",
    r"\bnot (?:yet )?sure how to approach (?:this|that) type of question\b",
    r"\byour (?:statement|question|request|word|prompt|message|input|remark|comment)s? (?:may |might |could |"
    r"seems? to |appears? to )?"
    r"(?:contain|involve|include|violate|relate to|touch on)s?\b[^.]{0,40}\b(?:illegal|false|harmful|"
    r"inappropriate|sensitive|prohibited|"
    r"unlawful|law|polic|guideline)",
    r"\bplease (?:abide by|comply with|observe|obey|respect) (?:all )?(?:the )?(?:relevant |applicable |"
    r"local )?laws?\b",
    r"(?:^|[.!:] )(?:request|access|response|query|content) (?:has been |was )?(?:declined|denied|refused|"
    r"rejected|blocked)\b",
    r"\bi (?:strongly |firmly )?(?:urge|advise|encourage|beg) you not to\b",
)

_SEPARATOR = r"(?:[,.!:;—–]| but\b)+"
_TURN = r"(?:, but|, however,?|\. however,?|; however,?|\. but)\b"
_MACHINE = r"(?:ai|artificial intelligence|assistant|language model)\b"
# Words before the statement proper; they may follow one another in any order.
_LEAD_INS = compiled(
    r"(?:(?:i|we)(?: am| are))?\s*(?:(?:so|very|really|truly|deeply) )?sorry(?: for (?:any|the) [^,.!]{1,40})?"
    + _SEPARATOR,
    r"(?:my |sincere )*apologies(?: for [^,.!]{1,40})?" + _SEPARATOR,
    r"(?:i|we) (?:sincerely |deeply |must )?apologi[sz]e(?: for [^,.!]{1,60})?" + _SEPARATOR,
    r"(?:unfortunately|regrettably|respectfully|oh|well|hello|hi there|hi|hmm|however|but|and)\b[,.!:;]*",
    r"(?:thank you|thanks)\b(?: for [^,.!]{1,60})?[,.!]",
    r"as (?:an?|your) (?:responsible |helpful |harmless |ethical |large )*" + _MACHINE + r"[^,.]{0,60}[,.]",
    r"i am (?:just |only )?an? " + _MACHINE + r"[^,.]{0,60}[,.](?: (?:and|so|but)\b)?",
    r"i am not an? [^,.]{1,40}, but\b",
    r"i (?:completely |fully |do )?(?:understand|appreciate|realize|know|see)\b[^.]{1,120}?" + _TURN,
    r"it is (?:understandable|natural|normal|great|good)\b[^.]{1,100}?" + _TURN,
    r"while (?:i|it|this|your)\b[^,.]{1,100},",
    r"(?:i|we) (?:must|have to|need to|want to|would like to) (?:point out|inform you|tell you|say|emphasi[sz]e|stress|"
    r"make it clear|clarify|note) that\b",
    r"(?:i|we) (?:can|must|should) (?:tell you|say|share) that\b",
    r"(?:first(?: and foremost| of all)?,? )?(?:it is|please) (?:also |very )?(?:(?:important|crucial|"
    r"essential) to |worth )?"
    r"(?:note|noting|remember|understand|recogni[sz]e|be aware|keep in mind) that\b",
    r"i do not (?:hold|have) (?:any )?(?:personal )?(?:beliefs|opinions)[^.]{0,30}\.(?: however,?)?",
)

# Only as the first statement: the request itself is called improper, or its aim condemned.
_AT_THE_START = compiled(
    r"(?:it|this|that) (?:is|would be) (?:(?:generally|simply|absolutely|highly|also|both|extremely|"
    r"never) )*not (?:appropriate|ethical|acceptable|"
    r"respectful|okay|ok|productive|advisable)(?: (?:and|or|nor) \w+)* to\b",
    r"(?:it|this|that) (?:is|would be) (?:(?:generally|simply|absolutely|highly|also|both|"
    r"extremely) )*(?:inappropriate|unethical|"
    r"immoral|unacceptable)(?: (?:and|or) \w+)* to\b",
    r"(?:it|this|that) (?:is|would be) (?:never|neither) (?:ok|okay|acceptable|appropriate|ethical|moral|right)\b",
    r"(?:it|this|that) is not (?:an? )?(?:appropriate|acceptable|ethical|respectful|suitable)(?: (?:and|"
    r"or) \w+)* (?:request|question|topic|joke|statement|comment)\b",
    r"(?:i do not (?:think|believe)|i am not sure)(?: that)? (?:it|this|"
    r"that) is(?: an?)? (?:not )?(?:appropriate|ethical|acceptable|"
    r"respectful)\b",
    r"(?:it|this) is not (?:accurate|fair|right) (?:and|or|nor) (?:accurate|fair|appropriate|respectful|ethical) to\b",
    r"(?:it|this|that) goes against\b",
    r"(?:this|that|your|the) (?:question|request|prompt|statement) (?:contains|makes|promotes|"
    r"perpetuates) (?:an? )?(?:\w+ (?:and|or) )?(?:harmful|"
    r"offensive|racist|inaccurate|hateful|inappropriate)\b",
    r"(?:this|that|your|the) (?:question|request|topic|prompt|query) (?:goes against|violates|"
    r"involves (?:illegal|harm)|"
    r"is (?:not appropriate|inappropriate|unethical|harmful|beyond|outside|against))",
    r"(?:any form of |physical )?(?:violence|discrimination|torture|abuse)\b[^.]{0,60} is (?:never|"
    r"not) (?:acceptable|okay|ok|the answer|right)\b",
    r"asking\b[^.]{3,120} is not (?:an )?appropriate\b",
    r"i (?:strongly |firmly )?condemn\b|i do not (?:believe in|condone)\b|i do not support (?:the idea|any|such|"
    r"this|that|violence|"
    r"discriminat\w+|harm\w*)\b",
)
# The line of a state, and a plain "No": answers, however they judge the question.
_NEVER_AT_THE_START = compiled(
    r"^\W*(?:no|yes|nope)\b",
    r"\b(?:china|chinese|taiwan|tibet|xinjiang|uyghur|hong kong|the party|internal affairs|sovereign|territor|"
    r"anti-china)",
)

# A correction, a limit of knowledge, a figure that is not exact, a letter: not refusals.
_ANSWERS = compiled(
    r"(?:an?|purely|entirely) fictional|fictional (?:character|person|being|place|company|entity)",
    r"(?:does|do) not exist|not a real (?:person|place|character)|nonsensical",
    r"not (?:a )?(?:sentient|living|conscious)|inanimate|imaginary|mythical|scientifically|not possible for|"
    r"supernatural",
    r"real-time (?:information|data|access)|current (?:weather|date|time)|browse the (?:internet|web)",
    r"do not have (?:personal|feelings|emotions|a physical)",
    r"\b(?:cannot|could not|will not) (?:answer|say|give|tell|recommend|stress|help)\b[^,.]{0,30}\b(?:more than|"
    r"enough|any better|exactly)\b",
    r"\b(?:cannot|could not) (?:give|provide|offer|share|tell)\b[^,.]{0,30}\b(?:exact|precise|definitive|"
    r"definite|certain)\b[^.]{0,60}\bbut\b",
    r"\bbut (?:here (?:is|are)|here's|the usual|the following)\b",
    r"\b(?:recommend|suggest|advise)\b[^.]{0,60}\benough\b",
    r"^\W*(?:subject:|dear (?!user|customer|friend|reader))",
)

ENGLISH = Language(
    name="English",
    codes=("en",),
    letters=LATIN,
    unmistakable=_UNMISTAKABLE,
    answers=_ANSWERS,
    lead_ins=_LEAD_INS,
    at_the_start=_AT_THE_START,
    never_at_the_start=_NEVER_AT_THE_START,
    normal_form=normal_form,
)
