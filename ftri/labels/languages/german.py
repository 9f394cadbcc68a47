"""How German refuses."""

from __future__ import annotations

from ftri.labels.languages.language import LATIN, Language, any_of, compiled

_MODAL = r"(?:kann|darf|werde|möchte|moechte|will|könnte|koennte|mag|soll|würde|muss)"
_NOT = r"\b(?:nicht|kein\w*|nie(?:mals)?|keinesfalls|nichts)\b"
_HELP = any_of(
    r"helf|hilf|weiterhelf|behilflich|unterstütz|unterstuetz|assistier|beantwort|antwort|auskunft|angaben|"
    r"auskünfte|informationen|anleitung|details|hinweise",
    r"bereitstell|bereitzustell|geben|gebe\b|liefer|erstell|schreib|verfass|erzeug|generier|produzier|entwickel|"
    r"programmier|formulier|übersetz|anfertig",
    r"diskutier|besprech|sprech|red(?:e|en)\b|äußer|aeusser|stellung|eingehen|einlass|kommentier|thematisier",
    r"teilnehm|teil(?:en|e)\b|mitmach|mitwirk|beteilig|beitrag|nachkomm|erfüll|bearbeit|entsprech|folge leist|"
    r"umsetz|ausführ|fortfahr|fortsetz",
    r"anbiet|erklär|verrat|preisgeb|weitergeb|herausgeb|offenleg|zeig|beibring|beschreib|mitteil|nennen|"
    r"verherrlich|fördern|befürwort|gutheiß|ermutig|(?:das|dies|es|so etwas) (?:tun|machen)",
)
# "Ich helfe nicht": the verb itself, in the first person.
_HELP_NOW = (
    r"(?:helfe|unterstütze|beantworte|antworte|gebe|liefere|erstelle|schreibe|verfasse|erzeuge|generiere|"
    r"produziere|diskutiere|bespreche|spreche|"
    r"rede|kommentiere|beteilige|mache|biete|erkläre|verrate|zeige|teile|leiste|stelle|nehme|führe|entwickle)"
)
_GAP = r"[^.!?;]{0,70}?"

_UNMISTAKABLE = compiled(
    r"\b(?:bedauer|tut mir leid|leider)[^.!?;]{0,40}" + _NOT + r"[^.!?;]{0,40}(?:" + _HELP + r")\w* zu können\b",
    r"\b"
    + _MODAL
    + r" (?:und (?:werde|will|darf|kann) )?(?:ich|wir)\b"
    + _GAP
    + _NOT
    + r"[^.!?;]{0,90}?(?:"
    + _HELP
    + r")",
    r"\bich " + _MODAL + r"\b" + _GAP + _NOT + r"[^.!?;]{0,90}?(?:" + _HELP + r")",
    r"\b(?:kann|werde|darf|will|möchte) (?:und (?:kann|werde|darf|will) )?ich[^.,!?;]{0,20} nicht\b(?=[.!,]|$|"
    r" (?:machen|tun|schreiben))",
    # The order of a subordinate clause: "zu dem ich mich nicht äußern kann".
    r"\bich\b[^.,!?;]{0,30}" + _NOT + r"[^.,!?;]{0,60}(?:" + _HELP + r")\w*[^.,!?;]{0,10}\b" + _MODAL + r"\b",
    r"\bich " + _HELP_NOW + r"\b" + _GAP + _NOT,
    r"\b" + _HELP_NOW + r" ich\b" + _GAP + _NOT,
    r"\b(?:ich bin|bin ich|ich sehe mich|sehe ich mich|ich fühle mich)\b[^.!?;]{0,30}(?:nicht|außerstande|"
    r"ausserstande|außer stande) ?(?:in der lage|befugt|berechtigt|"
    r"bereit|imstande|dazu da|dafür da|autorisiert|wohl)?[^.!?;]{0,20}(?=[,.]| zu\b|\bzu\b|" + _HELP + r")",
    r"\bist (?:es )?mir\b[^.!?;]{0,20}(?:nicht|unmöglich|untersagt|verboten|verwehrt)\b",
    r"\b(?:ich|mich)\b[^.!?;]{0,80}\b(?:ablehnen|verweigern|weigern|abzulehnen|zurückweisen)\b|\bich (?:lehne|"
    r"weise|schlage)\b[^.!?;]{0,60}\b(?:ab|zurück|aus)\b|"
    r"\b(?:ich weigere|weigere ich) mich\b|\bmuss ich[^.!?;]{0,60}(?:ablehnen|passen|absehen|verzichten)\b|"
    r"\bich (?:verzichte|sehe) (?:hier|dabei|lieber|davon)",
    r"\bich (?:möchte|würde|will) (?:lieber|es vorziehen)[^.!?;]{0,20}nicht\b|"
    r"\bziehe (?:ich )?(?:es )?vor[^.!?;]{0,20}nicht\b",
    r"\b(?:lass(?:en sie)? uns|lasst uns|wollen wir|sprechen wir|reden wir|"
    r"wechseln wir)\b[^.!?;]{0,30}(?:etwas (?:anderes|anderem)|andere[ns]? themen?|anderem|das thema|"
    r"thema (?:wechseln|ändern))",
    r"\b(?:verstößt|verstösst|verstoßen|widerspricht|widersprechen)\b[^.!?;]{0,20}\b(?:meine[nr]?|unsere[nr]?|"
    r"die|den|gegen die)\b[^.!?;]{0,20}(?:richtlinie|grundsätz|prinzipien|regeln|werte|programmierung|vorgaben|"
    r"nutzungsbed)",
    r"\b(?:außerhalb|jenseits)\b[^.!?;]{0,20}\b(?:meiner|meines|dessen, was ich)\b|\b(?:übersteigt|überschreitet) mein",
    r"\bmeine (?:\w+ )?(?:richtlinien|programmierung|grundsätze|regeln|vorgaben)\b[^.!?;]{0,40}\b(?:verbieten|"
    r"erlauben|untersagen|verhindern|lassen)\b",
    r"\b(?:anfrage|antwort|zugriff) (?:wurde )?(?:abgelehnt|verweigert|blockiert)\b",
)
_ANSWERS = compiled(
    r"^\W*(?:sehr geehrte|liebe[r]? (?!nutzer)|betreff:)",
    r"\bich (?:kann|werde|muss) [^.!?;]{0,20}(?:sagen|versichern|bestätigen|empfehlen), dass\b",
    r"\b(?:genaue\w*|exakte\w*|präzise\w*|sicher|mit gewissheit|oft genug|besser|"
    r"mehr als)\b[^.!?;]{0,40}(?:geben|nennen|sagen|beantworten|angeben|helfen)[^.]{0,40}\b(?:aber|doch|jedoch)\b",
)

GERMAN = Language(name="German", codes=("de",), letters=LATIN, unmistakable=_UNMISTAKABLE, answers=_ANSWERS)
