"""What others wrote is shown escaped, and commands are quoted for a shell."""

import subprocess

import pytest

from mobilenas.console import ConsoleListener, print_error, print_table
from mobilenas.core.text import markdown, paragraph, printable, shell_command

EVIL = "\x1b[31mred\x1b]0;title\x07\r\n\x9b1m\u202eabc\u2066\u2028\x7f"


@pytest.mark.parametrize("make", [printable, markdown])
def test_no_control_character_is_left(make: object) -> None:
    shown = make(EVIL)  # type: ignore[operator]
    assert shown.isprintable()
    assert "x1b" in shown
    assert "u202e" in shown
    assert printable("\udcff naïve 模型 5 µs") == "\\udcff naïve 模型 5 µs"


def test_further_lines_of_a_message_are_indented() -> None:
    assert paragraph("broke:\nerror: forged\x1b[2K") == "broke:\n  error: forged\\x1b[2K"


def test_markdown_has_no_markup_of_others() -> None:
    assert markdown("<b>|`x` [a](http://b)") == r"\<b\>\|\`x\` \[a\](http://b)"


@pytest.mark.parametrize("words", [["a b; touch PWN #", "it's"], ["\x1b[2K'\\\n", "x\x1b0"], ["plain", "", "$HOME", "\u202e"]])
def test_a_command_is_pasted_as_it_was(words: list[str]) -> None:
    shown = shell_command(["printf", "%s\\0", *words])
    assert shown.isprintable()
    printed = subprocess.run(["bash", "-c", shown], capture_output=True, check=True).stdout.decode()
    assert printed.split("\0")[:-1] == words


@pytest.mark.parametrize("is_terminal", [False, True])
def test_tables_and_messages_show_others_text_escaped(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    print_table(f"title {EVIL}", [("name", "[red]a[/red] :smile:"), (f"cpu {EVIL}", f"fake\n  error  0.1 % {EVIL}")])
    with ConsoleListener() as listener:
        listener.note(f"[bold]note[/bold] {EVIL}")
        listener.progress(f"stage {EVIL}", 1, 2)
    print_error(f"error: {EVIL}")
    shown = "".join(capsys.readouterr())
    assert "[red]a[/red] :smile:" in shown
    assert "[bold]note[/bold]" in shown
    assert not any(raw in shown for raw in ("\x1b]0;", "\x1b[31mred", "\x07", "\u202e", "\x9b", "\u2028"))
    assert not any(line.startswith("  error") for line in shown.splitlines())
