"""The pages: the site builds without a warning, and what stands on them runs as it stands."""

import re
import subprocess
import sys

import pytest
import yaml
from mmengine.config import Config

from mirrorla_mm.analysis.flops import build_empty
from mirrorla_mm.analysis.metafiles import models_of
from mirrorla_mm.analysis.paper_tables import quick_bases
from tests.conftest import REPOSITORY
from tests.pages import commands, configs

DOCS = REPOSITORY / 'docs'
PAGES = [REPOSITORY / 'README.md', REPOSITORY / 'CONTRIBUTING.md', *sorted(DOCS.rglob('*.md'))]


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip('myst_nb', reason='the extra "docs" is not installed')
    pytest.importorskip('furo', reason='the extra "docs" is not installed')
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'class="headerlink" href="#mirrorla_mm.ops.mirror_attention"' in (
        tmp_path / 'api.html'
    ).read_text(encoding='utf-8')


@pytest.mark.slow
def test_site_does_not_build_with_a_broken_link_or_anchor(tmp_path):
    pytest.importorskip('myst_nb', reason='the extra "docs" is not installed')
    pytest.importorskip('furo', reason='the extra "docs" is not installed')
    pages = tmp_path / 'docs'
    pages.mkdir()
    (pages / 'conf.py').write_text(
        (DOCS / 'conf.py').read_text().replace('parents[1]', 'parents[0]')
    )
    (pages / 'mirrorla_mm').symlink_to(REPOSITORY / 'mirrorla_mm')
    (pages / 'index.md').write_text('# A page\n\n[gone](gone.md), [nowhere](#nowhere)\n')
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', pages, tmp_path / 'out']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "not found: 'gone.md'" in done.stderr and "not found: 'nowhere'" in done.stderr


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_s_commands_name_are_there(page):
    for words in commands(page):
        for word in words:
            if re.match(r'(tools|configs|requirements)/\S+\.(py|sh|txt)$', word):
                assert (REPOSITORY / word).exists(), word


CONFIGS = [(page, i) for page in PAGES for i in range(len(configs(page)))]


@pytest.mark.parametrize(('page', 'i'), CONFIGS, ids=lambda part: getattr(part, 'stem', part))
def test_config_of_a_page_builds(page, i, tmp_path):
    (tmp_path / 'configs').symlink_to(REPOSITORY / 'configs')
    (tmp_path / 'config.py').write_text(configs(page)[i])
    with quick_bases():
        cfg = Config.fromfile(tmp_path / 'config.py')
    model = build_empty(cfg)
    params = sum(p.numel() for p in model.parameters())
    assert type(model.backbone).__module__.startswith('mirrorla_mm.')
    if page.stem == 'README':  # the same model as the recipe's
        recipe = 'retinanet_mirrorla-t-linear_fpn_1x_coco'
        models = models_of(REPOSITORY / 'configs' / 'retinanet' / 'metafile.yml')
        assert [params] == [m['Metadata']['Parameters'] for m in models if m['Name'] == recipe]


def test_the_clone_line_stands_in_one_place():
    found = [page for page in PAGES if 'git clone' in page.read_text(encoding='utf-8')]
    assert found == [REPOSITORY / 'README.md']
    assert found[0].read_text(encoding='utf-8').count('git clone') == 1


def test_readme_is_one_screen():
    text = (REPOSITORY / 'README.md').read_text(encoding='utf-8')
    assert len(text.splitlines()) < 130
    assert '<this repository>' not in text


def test_citation_names_the_paper_as_the_readme_does():
    cited = yaml.safe_load((REPOSITORY / 'CITATION.cff').read_text())['preferred-citation']
    readme = (REPOSITORY / 'README.md').read_text()
    assert cited['title'] in readme and cited['journal'].split()[-1].split(':')[1] in readme
    names = [f'{a["family-names"]}, {a["given-names"]}' for a in cited['authors']]
    assert ' and '.join(names) in readme


def test_pre_commit_has_the_tested_ruff():
    hooks = yaml.safe_load((REPOSITORY / '.pre-commit-config.yaml').read_text())['repos']
    (ruff,) = (repo['rev'] for repo in hooks if 'ruff' in repo['repo'])
    tested = (REPOSITORY / 'requirements' / 'tested.txt').read_text()
    assert f'ruff=={ruff.removeprefix("v")}\n' in tested


@pytest.mark.parametrize('form', sorted((REPOSITORY / '.github/ISSUE_TEMPLATE').glob('*.yml')))
def test_issue_forms_have_what_the_forms_need(form):
    content = yaml.safe_load(form.read_text())
    if form.stem == 'config':
        assert content == dict(blank_issues_enabled=True)
        return
    assert content['name'] and content['description']
    fields = [field['id'] for field in content['body']]
    assert len(fields) == len(set(fields))
    assert all(field['attributes']['label'] for field in content['body'])
