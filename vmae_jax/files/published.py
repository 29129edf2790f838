"""What is saved to a folder, loaded from one or from the hub, and pushed there.

`JsonFile` is all of it for what one JSON file holds: a configuration, a processor's options.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from vmae_jax.errors import SettingError
from vmae_jax.files import hub
from vmae_jax.files.atomic import write_file, write_files


class Published:
    """Has `save_pretrained`, and so `push_to_hub`."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **save_options: Any,
    ) -> str:
        """The commit on the Hugging Face hub that holds what `save_pretrained` writes.

        Args:
          repo_id: "organisation/name", or "name" in the user's own namespace; made if needed.
          commit_message: None for "Upload" and the class.
          commit_description, private, token, revision, create_pr: as `files.hub.upload` says.
          **save_options: for `save_pretrained`.
        Returns:
          Its address; further attributes are those of huggingface_hub's `CommitInfo`.
        Raises:
          PermissionError: without a token that may write there.
          ConnectionError: if the hub cannot be reached, or refuses for another reason.
        """
        return hub.upload(
            lambda folder: self.save_pretrained(folder, **save_options),
            repo_id,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )

    def _push_saved(
        self,
        directory: str | os.PathLike,
        push_to_hub: bool,
        push_options: Mapping[str, Any],
        **save_options: Any,
    ) -> None:
        """The second half of `save_pretrained(directory, push_to_hub=..., **push_options)`."""
        if push_to_hub:
            name = os.path.basename(os.path.abspath(directory))
            self.push_to_hub(**{"repo_id": name, **push_options}, **save_options)
        elif push_options:
            raise SettingError(
                f"{', '.join(push_options)} is no option of save_pretrained; those of push_to_hub "
                "are, with push_to_hub=True."
            )


class JsonFile(Published):
    """What one JSON file of a folder or repository holds. A subclass has `to_dict`, `from_dict`."""

    FILE: ClassVar[str]  # its name
    KIND: ClassVar[str]  # what it is, for messages

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        **overrides: Any,
    ) -> Self:
        """What a folder, a repository of the hub, or the file itself describes.

        Args:
          pretrained_model_name_or_path: a folder that holds the file, the file, or a hub id
            ("MCG-NJU/videomae-base").
          revision: branch, tag or commit of a hub id.
          **overrides: values that replace those of the file, before anything is checked.
        Raises:
          FileNotFoundError: if there is no such file or repository.
          ValueError: if it is no JSON object, or a value is bad; the file is named.
          OSError: if the hub cannot be reached and the file is not in its cache.
        """
        hub.refuse_download_options(overrides)
        path = os.fspath(pretrained_model_name_or_path)
        if hub.is_hub_id(path):
            path = hub.download_file(path, cls.FILE, revision)
        elif revision is not None:
            raise SettingError(f"revision={revision!r} is for hub ids, and {path} is none.")
        if not os.path.isfile(path):
            path = os.path.join(path, cls.FILE)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{path} does not exist; give a directory that holds {cls.FILE}, or a hub id."
            )
        return cls.from_json_file(path, **overrides)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike, **overrides: Any) -> Self:
        """What a JSON file describes; `overrides` and errors as in `from_pretrained`."""
        with open(json_file, "rb") as file:
            content = file.read()
        try:
            try:
                values = json.loads(content)
            except ValueError as error:
                raise SettingError(f"it is not JSON ({error})") from error
            if not isinstance(values, dict):
                raise SettingError(f"it holds a JSON {type(values).__name__}, not an object")
            return cls.from_dict(values, **overrides)
        except (ValueError, TypeError, RecursionError) as error:
            raise SettingError(f"{json_file} is no {cls.KIND}: {error}") from error

    def to_json_string(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Writes `to_json_string` to a file, whole or not at all."""
        write_file(json_file_path, lambda file: file.write(self.to_json_string().encode()))

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        push_to_hub: bool = False,
        **push_options: Any,
    ) -> None:
        """Writes the file, which transformers 4 and 5 read, whole or not at all.

        Args:
          save_directory: made if needed.
          push_to_hub: whether to push it too, under the folder's name unless `repo_id` is given.
          **push_options: for `push_to_hub`.
        """
        text = self.to_json_string().encode()
        write_files(save_directory, {self.FILE: lambda file: file.write(text)})
        self._push_saved(save_directory, push_to_hub, push_options)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"
