import hashlib

import pytest

from budgetcl.assets.checked import FOLDER, read_asset, recorded_hash, write_asset
from budgetcl.errors import UserError
from budgetcl.models import backbones
from budgetcl.streams import rendering


def test_every_asset_that_ships_has_a_recorded_hash_that_fits():
    shipped = [path for path in FOLDER.iterdir() if path.suffix in (".xz", ".safetensors", ".txt")]
    assert len(shipped) == 3
    for path in shipped:
        assert recorded_hash(path.name) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_written_is_read_back_and_the_other_records_stay(tmp_path):
    write_asset("b", b"two", tmp_path)
    write_asset("a", b"one", tmp_path)
    write_asset("b", b"three", tmp_path)
    assert read_asset("b", "make.py", tmp_path) == b"three"
    assert read_asset("a", "make.py", tmp_path) == b"one"
    assert len((tmp_path / "SHA256SUMS").read_text().splitlines()) == 2


def test_a_damaged_asset_is_refused_with_both_hashes_and_what_mends_it(tmp_path):
    write_asset("atlas", b"sound", tmp_path)
    (tmp_path / "atlas").write_bytes(b"damaged")
    with pytest.raises(UserError) as error:
        read_asset("atlas", "make.py", tmp_path)
    message = str(error.value)
    for part in ("atlas", hashlib.sha256(b"sound").hexdigest(), hashlib.sha256(b"damaged").hexdigest(), "make.py"):
        assert part in message
    assert "\n" not in message


def test_a_missing_asset_and_a_missing_record_are_refused(tmp_path):
    with pytest.raises(UserError, match="SHA256SUMS cannot be read"):
        read_asset("atlas", "make.py", tmp_path)
    write_asset("atlas", b"sound", tmp_path)
    with pytest.raises(UserError, match="names no other"):
        read_asset("other", "make.py", tmp_path)
    (tmp_path / "atlas").unlink()
    with pytest.raises(UserError, match="reinstall budgetcl"):
        read_asset("atlas", "make.py", tmp_path)


@pytest.mark.parametrize(
    ("module", "load"),
    [
        (rendering, lambda: rendering.atlas_images()),
        (backbones, lambda: backbones.SmallResNet(pretrained="glyphs")),
    ],
)
def test_the_atlas_and_the_backbone_are_read_through_the_check(monkeypatch, module, load):
    def refuse(name, made_by):
        raise UserError(f"{name} by {made_by}")

    monkeypatch.setattr(module, "read_asset", refuse)
    with pytest.raises(UserError, match="glyphs"):
        load()
