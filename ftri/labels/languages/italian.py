"""How Italian refuses."""

from __future__ import annotations

from ftri.labels.languages.language import LATIN, Language, any_of, compiled

_PRONOUNS = r"(?:(?:ti|vi|le|gli|lo|la|li|ne|mi|ci|si|te|ve|glielo|telo) )*"
_HELP = any_of(
    r"aiut|assist|support|rispond|risposta|fornir|forni|offr|dare\b|dart|darl|darvi|dar\b|condivid|rivel|divulg|"
    r"comunic|essere d'aiuto|esserti|rilasci",
    r"parl|discut|comment|convers|opin|affront|trattar|dibatt|continu|prosegu|pronunci|entrare|esprim",
    r"scriv|crear|crea\b|gener|produr|redig|elabor|compor|svilupp|programm|tradur|invent|progett|realizz",
    r"soddisf|accogli|esaudi|elabor|esegu|complet|partecip|collabor|cooper|contribu|fare (?:questo|ciò|quest)|"
    r"farlo|prendere parte|accett|assecond|procedere",
    r"spieg|insegn|mostr|guid|indic|descriv|dettagli|istru|dirti come|promuov|incoraggi|sosten|incit|giustific|"
    r"facilit|consigliarti come",
)
_HELP_NOW = (
    r"(?:aiuto|aiuterò|fornisco|fornirò|offro|offrirò|do|darò|condivido|condividerò|parlo|parlerò|discuto|"
    r"discuterò|scrivo|scriverò|creo|creerò|genero|genererò|produco|produrrò|partecipo|parteciperò|rispondo|"
    r"risponderò|spiego|spiegherò|faccio|farò|promuovo|redigo|commento|rivelo|rivelerò|insegno|insegnerò|"
    r"collaboro|collaborerò|assisto|assisterò|tratto|tratterò)"
)

_UNMISTAKABLE = compiled(
    r"\b(?:dispiace|spiace|scus|rammaric)\w*[^.,!?;]{0,15} non poter(?! assistere a)[^.!?;]{0,40}?(?:" + _HELP + r")",
    r"\bnon "
    + _PRONOUNS
    + r"(?:posso|potrò|potrei|devo|voglio|vorrei|intendo|riesco a|possiamo|desidero)\b ?[^.!?;]{0,50}?(?:"
    + _HELP
    + r")",
    r"\b(?:non|mai|né) " + _PRONOUNS + _HELP_NOW + r"\b",
    r"\bnon (?:sono|mi sento|mi trovo|sono stat[oa]) (?:\w+ )?(?:autorizzat|in grado|capace|abilitat|programmat|"
    r"progettat|dispost|in condizione|in condizioni|nella posizione|a mio agio|tenut)",
    r"\bnon mi (?:è|sarà|viene) (?:\w+ )?(?:possibile|permess|consentit|concess)|\bmi è (?:\w+ )?(?:impossibile|"
    r"vietato|proibito)|\bnon (?:mi )?(?:permettono|consentono) di\b|\bnon ho (?:il permesso|l'autorizzazione|"
    r"la possibilità|la capacità)",
    r"\b(?:devo|preferisco|sono costrett[oa] a|sono obbligat[oa] a|dovrò|vorrei|voglio)? ?(?:rifiutare|rifiuto|"
    r"declinare|declino|respingere|rifiutarmi|astenermi|mi rifiuto|mi astengo|mi oppongo)\b",
    r"\bpreferisco (?:non|evitare)\b|\bpreferirei (?:non|evitare)\b",
    r"\b(?:parliamo|cambiamo|discutiamo|passiamo|affrontiamo)\b[^.!?;]{0,20}(?:d'altro|di altro|altro|argomento|"
    r"qualcos'altro|un altro)",
    r"\b(?:va|vanno|andrebbe|è|sarebbe)? ?(?:contro|contrari[oa]|viola|violano|infrange|"
    r"in contrasto)\b[^.!?;]{0,10}\b(?:i|le|ai|alle|con i|con le)? ?(?:miei|mie|nostre|nostri|"
    r"linee)\b[^.!?;]{0,20}(?:principi|linee guida|politiche|norme|valori|regole|guida)",
    r"\b(?:al di fuori|fuori|oltre|esula)\b[^.!?;]{0,15}\b(?:dalle mie|dai miei|dal mio|delle mie|dei miei|"
    r"del mio|le mie|i miei|di ciò che posso)\b|\ble mie (?:linee guida|regole|politiche)\b[^.!?;]{0,30}(?:non|"
    r"vietano|impediscono)",
    r"\b(?:richiesta|risposta) (?:è stata )?(?:rifiutata|respinta|negata)\b",
)
_ANSWERS = compiled(
    r"^\W*(?:gentile (?!utente)|egregi[oa]|car[oa] (?!utente)|oggetto:)",
    r"\bnon (?:posso|vedo) (?:l'ora|fare a meno|che)\b|\bnon posso (?:aspettare|non )",
    r"\b(?:esatt|precis)[oaie]\b[^.!?;]{0,40}\bma\b",
)

ITALIAN = Language(name="Italian", codes=("it",), letters=LATIN, unmistakable=_UNMISTAKABLE, answers=_ANSWERS)
