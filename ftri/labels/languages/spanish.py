"""How Spanish refuses."""

from __future__ import annotations

from ftri.labels.languages.language import LATIN, Language, any_of, compiled

_PRONOUNS = r"(?:(?:te|le|les|os|lo|la|los|las|me|se|nos) )*"
_HELP = any_of(
    r"ayud|asist|apoy|respond|respuesta|contest|proporcion|brind|ofrec|dar\b|darte|darle|daré|facilit|suministr|"
    r"compart|revel|divulg|entreg",
    r"habl|discut|coment|conversar|opin|abord|trat(?:ar|aré)|debat|continu|segu|proseg|pronunci|entrar en|referirme",
    r"escrib|cre(?:ar|aré)|gener|produc|redact|elabor|compon|desarroll|program|traduc|invent|diseñ",
    r"cumpl|satisfac|atend|complac|proces|acced|realiz|complet|ejecut|particip|colabor|cooper|contribu|"
    r"formar parte|hacer (?:eso|esto|lo)|hacerlo|involucr|acept",
    r"explic|enseñ|mostr|guiar|guiarte|indic|describ|detall|instru|decirte cómo|promov|foment|alent|respald|"
    r"incit|justific|ser de ayuda|serte útil|tolerar|apoyar",
)
_HELP_NOW = (
    r"(?:ayudo|ayudaré|proporciono|proporcionaré|ofrezco|ofreceré|doy|daré|comparto|compartiré|hablo|hablaré|"
    r"discuto|discutiré|escribo|escribiré|creo contenido|crearé|genero|generaré|produzco|"
    r"produciré|participo|participaré|respondo|responderé|explico|explicaré|facilito|facilitaré|colaboro|"
    r"colaboraré|apoyo|apoyaré|brindo|brindaré|hago|haré|promuevo|redacto|redactaré|contesto|"
    r"comento|revelo|revelaré|enseño|enseñaré)"
)

_UNMISTAKABLE = compiled(
    r"\b(?:lament|sient|sentimos|disculp|perdon)\w*[^.,!?;]{0,15} no poder(?! asistir a)[^.!?;]{0,40}?(?:"
    + _HELP
    + r")",
    r"\bno "
    + _PRONOUNS
    + r"(?:puedo|podré|podría|debo|quiero|voy a|pienso|deseo|podemos|he de|estoy aquí para|logro)\b[^.!?;]{0,50}?(?:"
    + _HELP
    + r")",
    r"\b(?:no|nunca|tampoco) " + _PRONOUNS + _HELP_NOW + r"\b",
    r"\bno (?:estoy|soy|me encuentro|me siento) (?:\w+ )?(?:autorizad|en condiciones|capaz|habilitad|programad|"
    r"diseñad|dispuest|capacitad|en posición|facultad|cómod|preparad)",
    r"\bno (?:me|nos) (?:es posible|está permitido|es permitido|corresponde|resulta posible|permiten|"
    r"está autorizado)|\bme (?:es|resulta) imposible\b|\btengo (?:prohibido|que (?:declinar|rechazar|negarme|"
    r"abstenerme))|"
    r"\bno tengo (?:permitido|permiso|autorización|la capacidad de|la posibilidad de)",
    r"\b(?:debo|tengo que|prefiero|me veo obligad[oa] a|he de|voy a|quisiera|necesito)?\s?(?:rechazar|rechazo|"
    r"declinar|declino|negarme|abstenerme|me niego|me abstengo|me rehúso|rehúso|rehusar|me opongo)\b(?! que)",
    r"\bprefiero (?:no|que no|evitar)\b",
    r"\b(?:hablemos|cambiemos|conversemos|pasemos|charlemos|hablamos|discutamos)\b[^.!?;]{0,25}(?:otra cosa|"
    r"otro tema|de tema|otros temas|algo (?:distinto|diferente|más))",
    r"\b(?:va|van|iría|está|estaría)? ?(?:en contra|contra|contraviene|viola|infringe|"
    r"incumple)\b[^.!?;]{0,10}\b(?:de )?(?:mis|nuestras|nuestros|las|los)\b[^.!?;]{0,15}(?:principios|"
    r"directrices|políticas|normas|valores|pautas|reglas|ética)",
    r"\b(?:fuera|más allá)\b[^.!?;]{0,15}\b(?:de mi|de mis|de lo que puedo)\b|\bmis (?:directrices|normas|"
    r"políticas|principios|pautas|reglas)\b[^.!?;]{0,30}(?:no me permiten|me impiden|prohíben)",
    r"\b(?:solicitud|petición|respuesta) (?:ha sido )?(?:rechazada|denegada|declinada)\b",
)
_ANSWERS = compiled(
    r"^\W*(?:estimad[oa] (?!usuari)|querid[oa] (?!usuari)|asunto:)",
    r"\bno puedo (?:esperar|dejar de|más que|evitar)\b|\bno puedo recomendar\w* lo suficiente\b",
    r"\b(?:exact|precis)[oa]s?\b[^.!?;]{0,40}\bpero\b",
)

SPANISH = Language(name="Spanish", codes=("es",), letters=LATIN, unmistakable=_UNMISTAKABLE, answers=_ANSWERS)
