from __future__ import annotations

from sit_deploy.models import CONFIGS
from sit_deploy.models.cost import cost
from tests.helpers.command_line import CommandLine


def test_json_is_the_configurations(cli: CommandLine) -> None:
    rows = cli("models", "--json").json()
    assert [row["name"] for row in rows] == list(CONFIGS)
    for row, config in zip(rows, CONFIGS.values(), strict=True):
        figures = cost(config)
        assert row == {
            "name": config.name,
            "aliases": list(config.aliases),
            "parameters": figures.parameters,
            "macs": figures.macs,
            "image_size": config.image_size,
            "stage_blocks": list(config.stage_blocks),
            "tokens": list(config.tokens()),
            "teacher": config.teacher,
            "top1": config.top1,
        }


def test_table_has_every_model_and_its_figures(cli: CommandLine) -> None:
    result = cli("models")
    assert result.err == ""
    rows = {
        words[0]: words for line in result.out.splitlines() if (words := line.split()) and words[0] in CONFIGS
    }
    assert list(rows) == list(CONFIGS)
    # as the paper's table has them
    assert rows["sit_s"] == ["sit_s", "25.63", "4.03", "224", "9,3,2,2", "196,98,49,24", "83.1"]
    assert rows["sit_deit_s"] == ["sit_deit_s", "22.31", "3.01", "224", "6,2,2,2", "196,98,49,24"]
    assert rows["lvvit_l"] == ["lvvit_l", "147.17", "56.05", "288", "24", "324", "85.3"]
    for config in CONFIGS.values():
        assert all(f"{alias} = {config.name}" in result.out for alias in config.aliases)
    assert max(map(len, result.out.splitlines()[:-1])) <= 80
