"""How Portuguese refuses, in Brazil and in Portugal."""

from __future__ import annotations

from ftri.labels.languages.language import LATIN, Language, any_of, compiled

_PRONOUNS = r"(?:(?:te|lhe|lhes|vos|o|a|os|as|me|se|nos) )*"
_HELP = any_of(
    r"ajud|auxili|assist|apoi|respond|resposta|fornec|oferec|dar\b|dar-|disponibiliz|prest(?:ar|o)|compartilh|"
    r"partilh|revel|divulg|entreg|repass",
    r"fal(?:ar|o|arei)|discut|coment|convers|opin|abord|trat(?:ar|arei)|debat|continu|prossegu|pronunci|entrar em",
    r"escrev|cri(?:ar|arei|o)\b|ger(?:ar|arei)|produz|redig|elabor|compo|desenvolv|program|traduz|invent|projet",
    r"cumpr|satisfaz|atend|aced|process|realiz|complet|execut|particip|colabor|cooper|contribu|fazer (?:isso|"
    r"isto|parte)|fazê-lo|envolver|aceit|corresponder",
    r"explic|ensin|mostr|gui(?:ar|á)|orient|indic|descrev|detalh|instru|dizer como|promov|foment|incentiv|"
    r"encoraj|apoiar|incit|justific|ser útil|facilit",
)
_HELP_NOW = (
    r"(?:ajudo|ajudarei|forneço|fornecerei|ofereço|oferecerei|dou|darei|compartilho|compartilharei|partilho|"
    r"falo|falarei|discuto|discutirei|escrevo|escreverei|crio|criarei|gero|gerarei|produzo|produzirei|"
    r"participo|participarei|respondo|responderei|explico|explicarei|facilito|facilitarei|colaboro|apoio|"
    r"apoiarei|faço|farei|promovo|redijo|comento|comentarei|revelo|ensino|ensinarei)"
)

_UNMISTAKABLE = compiled(
    r"\b(?:lament|desculp|perdo|sint)\w*[^.,!?;]{0,15} não (?:poder|conseguir)(?! assistir a)[^.!?;]{0,40}?(?:"
    + _HELP
    + r")",
    r"\bnão " + _PRONOUNS + r"(?:posso|poderei|poderia|devo|quero|vou|consigo|pretendo|desejo|podemos|irei|hei de|"
    r"estou aqui para)\b[^.!?;]{0,50}?(?:" + _HELP + r")",
    r"\b(?:não|nunca|nem|jamais) " + _PRONOUNS + _HELP_NOW + r"\b",
    r"\bnão (?:estou|sou|me encontro|me sinto|fui) (?:\w+ )?(?:autorizad|em condições|capaz|habilitad|programad|"
    r"projetad|dispost|apt[oa]|em posição|confortável|preparad|à vontade|desenhad|concebid)",
    r"\bnão (?:me )?(?:é|está|foi|seria) (?:\w+ )?(?:possível|permitid|autorizad)\w* (?:ajud|respond|fornec|dar|"
    r"discut|fal|coment|atend|a mim|para mim|que eu)|\bnão me (?:é|está|foi|seria) (?:\w+ )?(?:possível|permitido)|"
    r"\b(?:é|torna)-me impossível|\bnão tenho (?:permissão|autorização|a capacidade|como (?:ajudar|responder|"
    r"fornecer|atender))|\bestou (?:proibid|impedid)",
    r"\b(?:devo|tenho (?:de|que)|prefiro|sou obrigad[oa] a|vou|preciso|vejo-me obrigad[oa] a|terei (?:de|"
    r"que))? ?(?:recusar|recuso|declinar|declino|rejeitar|negar-me|abster-me|recuso-me|me recuso|me abstenho|"
    r"abstenho-me|nego-me|me nego|me oponho)\b",
    r"\bprefiro (?:não|evitar|abster)",
    r"\b(?:vamos|que tal|podemos|mudemos|falemos|conversemos|passemos)\b[^.!?;]{0,25}(?:outra coisa|"
    r"outro assunto|outro tema|de assunto|de tema|algo diferente|outros assuntos)",
    r"\b(?:vai|vão|iria|é|está)? ?(?:contra|contrári\w+ a?|viola|infringe|contraria|"
    r"desrespeita)\b[^.!?;]{0,10}(?:os |as |às |aos )?(?:meus|minhas|nossas|nossos|as|os|às|"
    r"aos)\b[^.!?;]{0,15}(?:princípios|diretrizes|políticas|normas|valores|regras|orientações)",
    r"\b(?:fora|além)\b[^.!?;]{0,15}\b(?:do meu|da minha|dos meus|das minhas|do que posso)\b|\b(?:minhas|"
    r"meus) (?:diretrizes|normas|políticas|princípios|regras)\b[^.!?;]{0,30}(?:não me permitem|não permitem|"
    r"impedem|proíbem)",
    r"\b(?:solicitação|pedido|resposta) (?:foi )?(?:recusad|negad|rejeitad)[oa]\b",
)
_ANSWERS = compiled(
    r"^\W*(?:prezad[oa] (?!usuári)|car[oa] (?!usuári|utilizador)|assunto:)",
    r"\bnão (?:posso|consigo) (?:esperar|deixar de|mais que|evitar)\b",
    r"\b(?:exat|precis)[oa]s?\b[^.!?;]{0,40}\bmas\b",
)

PORTUGUESE = Language(name="Portuguese", codes=("pt",), letters=LATIN, unmistakable=_UNMISTAKABLE, answers=_ANSWERS)
