"""What the command line says to commands that there are not."""

from __future__ import annotations

import pytest

from froude.cli import main


@pytest.mark.parametrize(
    ("words", "says"), [(["plann"], "Did you mean 'plan'?"), (["simulate", "serv"], "Did you mean 'serve'?")]
)
def test_the_nearest_command_is_named(words, says, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["froude", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and says in said and said.count("\n") == 1
