"""Runs of a study: each is made once, with one set of settings, and says where it comes from."""

import json
from pathlib import Path

import pytest

from mirrorla_mm.analysis.study_runs import keep_study, read_runs, run_missing
from mirrorla_mm.engine.data import DataError
from mirrorla_mm.engine.errors import UserError


def make(folder: Path, rows: str, run=lambda row, seed, label: dict(row=row, seed=seed)) -> None:
    def file_of(row, seed):
        return folder / row / f'seed-{seed}.json'

    run_missing([(row, 0) for row in rows], file_of, str.upper, run)


def refuse(row, seed, label):
    raise AssertionError(label)


def test_a_run_is_made_once_and_says_where_it_comes_from(tmp_path, capsys):
    make(tmp_path, 'ab')
    make(tmp_path, 'ab', refuse)
    assert '[2/2] B, seed 0: done before' in capsys.readouterr().out
    results = read_runs(tmp_path.glob('*/*.json'), 'ba')
    assert [result['row'] for result in results] == ['b', 'a']
    for result in results:
        assert result.keys() == {'row', 'seed', 'machine', 'date', 'commit'}


def test_runs_without_a_commit_can_be_read_and_others_are_named(tmp_path):
    file = tmp_path / 'old.json'
    file.write_text(json.dumps(dict(arm='a', seed=0)))
    assert read_runs([file], 'a', key='arm') == [dict(arm='a', seed=0)]
    with pytest.raises(DataError, match='old.json holds no result of this study'):
        read_runs([file], 'b', key='arm')


def test_a_run_that_was_stopped_keeps_its_folder_to_its_settings(tmp_path):
    keep_study(tmp_path, dict(iters=4))
    keep_study(tmp_path, dict(iters=5))
    (tmp_path / 'row' / 'seed-0').mkdir(parents=True)
    keep_study(tmp_path, dict(iters=5))
    with pytest.raises(UserError, match=r'iters 5, not 4\): .* name another --work-dir\.$'):
        keep_study(tmp_path, dict(iters=4))


@pytest.mark.parametrize('name', ['results.json', 'seed-0/x', 'row/seed-0/x', 'row/seed-0.json'])
def test_runs_without_a_note_are_left_alone_unless_all_name_the_settings(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    run = file.parent if file.name == 'x' else file
    for agreed in ((), (tmp_path / 'row' / 'seed-1',)):
        with pytest.raises(UserError, match='study.json there does not say .* move its runs'):
            keep_study(tmp_path, dict(iters=4), agreed)
    keep_study(tmp_path, dict(iters=4), [run])
    keep_study(tmp_path, dict(iters=4))


def test_a_study_in_a_folder_below_is_another(tmp_path):
    (tmp_path / 'other' / 'row' / 'seed-0').mkdir(parents=True)
    keep_study(tmp_path, dict(iters=4))
