"""docs/families.md says what the family table says."""

from family_document import DOCUMENT, updated

from rewriter.families.lookup import FAMILIES


def test_the_document_is_up_to_date() -> None:
    text = DOCUMENT.read_text()
    assert updated(text) == text, "run: python tests/rewriter/family_document.py"


def test_every_family_is_in_every_table() -> None:
    lines = DOCUMENT.read_text().splitlines()
    for family in FAMILIES:
        assert sum(line.startswith(f"| {family.name} |") for line in lines) == 3
