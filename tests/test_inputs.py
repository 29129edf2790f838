import pytest
from prepared_sets import copied, edit_index, set_of_six

from vmae_jax.configs import default
from vmae_jax.errors import SettingError
from vmae_jax.inputs import open_source
from vmae_jax.tasks.pretraining import Pretraining


def test_clips_by_time_need_every_frame_of_a_prepared_set(tmp_path):
    copied(set_of_six(), tmp_path / "train")  # keeps every fourth frame
    config = default.get_config()
    config.data.name, config.data.path = "prepared", str(tmp_path)
    assert len(open_source(config, Pretraining(), "train")) == 6
    config.data.fps = 8.0
    with pytest.raises(SettingError, match=r"unevenly spaced .*prepare with --frame-step 1"):
        open_source(config, Pretraining(), "train")
    edit_index(tmp_path / "train", lambda index: index["settings"].update(frame_step=1))
    assert len(open_source(config, Pretraining(), "train")) == 6
