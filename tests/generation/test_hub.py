"""Generators by name: the local path first, then the hub; the real reason when neither has it."""

import json
import shutil
import socket
import sys
import time
import urllib.request

import jax
import numpy as np
import pytest

from dso_jax import pretrained
from dso_jax.errors import UsageError
from dso_jax.models import (
    DecoderConfig,
    DINOv2Config,
    FlowConfig,
    init_decoder,
    init_dinov2,
    init_flow,
)
from dso_jax.pretrained import hub
from dso_jax.sampler import SamplerConfig
from weight_port import files, to_torch

FLOW = FlowConfig(resolution=2, model_channels=12, cond_channels=6, num_blocks=2, num_heads=3)
DECODER = DecoderConfig(channels=(4, 2), num_res_blocks=1, num_res_blocks_middle=1)
REPO, REVISION = "someone/TRELLIS-tiny", "0" * 40


def write(folder):
    key = jax.random.key(0)
    models = {
        pretrained.FLOW: (FLOW, init_flow(FLOW, key)),
        pretrained.DECODER: (DECODER, init_decoder(DECODER, key)),
    }
    pretrained.save(folder, models, SamplerConfig(steps=3), {})
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache with one repository in it, and no way to the network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "cache" / f"models--{REPO.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(REVISION)
    return write(repo / "snapshots" / REVISION)


def rename_stem(folder, role, stem):
    path = folder / "pipeline.json"
    contents = json.loads(path.read_text())
    contents["args"]["models"][role] = stem
    path.write_text(json.dumps(contents))


def test_a_repository_is_read_from_the_hubs_cache(cache):
    for offline in (True, None):
        base = pretrained.load(REPO, offline=offline)
        assert (base.flow_config, base.decoder_config) == (FLOW, DECODER)
        assert base.sha256 == pretrained.load(str(cache)).sha256


def test_what_exists_locally_comes_first(cache, tmp_path):
    local = write(tmp_path / REPO)
    rename_stem(local, pretrained.FLOW, "ckpts/absent")
    with pytest.raises(UsageError, match=f"{REPO}/ckpts/absent.json: no such file, but .* names"):
        pretrained.load(REPO)


def test_a_model_of_another_repository_is_found(cache, tmp_path):
    """As the text pipelines name the image pipeline's decoder."""
    for name, stem in (("text", f"{REPO}/ckpts/decoder"), ("beside", "../text/other/decoder")):
        folder = write(tmp_path / name)
        shutil.move(folder / "ckpts", folder / "other")
        rename_stem(folder, pretrained.FLOW, "other/flow")
        rename_stem(folder, pretrained.DECODER, stem)
        assert pretrained.load(str(folder)).decoder_config == DECODER


def test_a_repository_names_a_model_of_another(cache, tmp_path):
    """Both come from the hub; what neither has is looked for where the name leads."""
    other = "someone/text"
    folder = tmp_path / "cache" / f"models--{other.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(REVISION)
    text = write(folder / "snapshots" / REVISION)
    for path in (text / "ckpts").glob("decoder*"):
        path.unlink()
    rename_stem(text, pretrained.DECODER, f"{REPO}/ckpts/decoder")
    assert pretrained.load(other).decoder_config == DECODER
    rename_stem(text, pretrained.DECODER, f"{REPO}/ckpts/absent")
    with pytest.raises(UsageError, match=f"^{REPO}/ckpts/absent.json: no local file"):
        pretrained.load(other)
    rename_stem(text, pretrained.DECODER, "ckpts/absent")
    with pytest.raises(UsageError, match=f"^{other}/ckpts/absent.json: no local file"):
        pretrained.load(other)


def test_a_connection_that_breaks_off_is_told_in_one_line(cache, monkeypatch):
    """What the HTTP library raises is neither the hub's error nor an OSError."""
    hub_library = pytest.importorskip("huggingface_hub")
    of_http = hub_library.errors.HfHubHTTPError.__bases__[0]

    def broken(*args, **kwargs):
        raise of_http("peer closed connection")

    monkeypatch.setattr(hub_library, "hf_hub_download", broken)
    with pytest.raises(UsageError, match=r"pipeline\.json: no local file.*peer closed connection"):
        pretrained.load(REPO)


def test_offline_keeps_off_the_network(cache, monkeypatch):
    """Asked for by the argument alone, whatever the environment says."""
    library = pytest.importorskip("huggingface_hub")
    download, asked = library.hf_hub_download, []

    def watched(repo, name, *, local_files_only):
        asked.append(local_files_only)
        return download(repo, name, local_files_only=True)

    monkeypatch.setattr(library, "hf_hub_download", watched)
    pretrained.load(REPO, offline=True)
    assert asked and all(asked)
    asked.clear()
    pretrained.resolve(REPO)  # left to HF_HUB_OFFLINE, which the library reads
    assert asked == [False]


def test_a_hub_that_does_not_answer_is_not_waited_for(cache, monkeypatch):
    """A mistyped path looks like a repository's name; the library would try for half a minute."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with socket.socket() as closed:
        closed.bind(("localhost", 0))  # and nobody listens
        monkeypatch.setattr(constants, "ENDPOINT", f"http://localhost:{closed.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(urllib.request, "getproxies", dict)
        started = time.monotonic()
        with pytest.raises(UsageError, match=r"rnus/mine/pipeline.*localhost:\d+ does not answer"):
            pretrained.load("rnus/mine")
        assert pretrained.flow_config(REPO) == FLOW  # what the cache has serves without it
        assert time.monotonic() - started < 2 * hub.PATIENCE
        monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://proxy"})
        assert hub._answers("http://localhost:1") and hub._answers("strange")


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_half_a_model_is_not_looked_for_elsewhere(cache, tmp_path, suffix):
    folder = write(tmp_path / "local")
    (folder / "ckpts" / f"flow{suffix}").unlink()
    with pytest.raises(UsageError, match=f"local/ckpts/flow{suffix}: no such file"):
        pretrained.load(str(folder))


@pytest.mark.parametrize("name", ["TRELLIS-image-large", "someone/else"])
def test_the_hubs_own_reason_is_told(cache, name):
    repo = hub.PUBLISHED.get(name, name)
    for offline in (True, None):
        with pytest.raises(
            UsageError, match=f"{repo}/pipeline.json: no local file, and not to be had"
        ) as error:
            pretrained.load(name, offline=offline)
        assert "LocalEntryNotFoundError" in str(error.value)
        assert len(str(error.value).splitlines()) == 1


def test_without_the_package_it_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"not a local folder.*pip install 'dso-jax\[hub\]'"):
        pretrained.load("microsoft/TRELLIS-image-large")


@pytest.mark.parametrize("name", ["a/b/c", "../x", "a b/c", "/abs/path", "nothing"])
def test_what_is_no_repository_is_not_asked_for(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no .*pipeline\.json; expected toybox, TRELLIS-image"):
        pretrained.load(name)


def test_an_image_encoder_is_read_by_path_or_name(cache, tmp_path):
    config = DINOv2Config(64, 1, 1, image_size=28)
    params = init_dinov2(config, jax.random.key(0))
    folder = cache.parents[1].with_name("models--facebook--dinov2-with-registers-small")
    folder = folder / "snapshots" / REVISION
    files.write(folder / "model.safetensors", to_torch("dinov2_hf", config, params))
    files.write(tmp_path / "hub.safetensors", to_torch("dinov2", config, params))
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text(REVISION)
    sources = ("dinov2_vits14_reg", "facebook/dinov2-with-registers-small", str(folder))
    for source in (*sources, str(tmp_path / "hub.safetensors")):
        found, weights = pretrained.load_image_encoder(source)
        assert found == config
        jax.tree.map(np.testing.assert_array_equal, weights, params)


def test_an_image_encoder_that_is_nowhere_or_cut_short_is_named(cache, tmp_path):
    with pytest.raises(UsageError, match=r"'vit.pth': no such file; .* dinov2_vitl14_reg"):
        pretrained.load_image_encoder("vit.pth")
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(UsageError, match=r"model\.safetensors: not a whole"):
        pretrained.load_image_encoder(str(tmp_path))


def test_a_description_is_read_without_the_weights(cache, tmp_path):
    local = write(tmp_path / "local")
    for folder, name in ((cache, REPO), (local, str(local))):
        (folder / "ckpts" / "flow.safetensors").unlink()
        assert pretrained.flow_config(name) == FLOW
    (cache / "ckpts" / "flow.json").unlink()
    with pytest.raises(UsageError, match=f"{REPO}/ckpts/flow.json: no local file"):
        pretrained.flow_config(REPO)
