"""Errors meant for the reader: one line that says what is wrong, where, and what to do about it."""


class TutorialError(Exception):
    """Base of every error this package raises on purpose."""


class AssetError(TutorialError):
    """Weights or data that are missing, cannot be fetched, or do not match their pinned hash."""


class DataError(TutorialError, ValueError):
    """Preference data that lacks a column, cannot be read, or yields no usable prompt."""


class ModelError(TutorialError, ValueError):
    """A model or tokenizer that does not fit its role, or inputs that do not fit the model."""


class RewardError(TutorialError, ValueError):
    """A reward that is not one finite number per response."""


class CheckpointError(TutorialError):
    """A checkpoint that cannot be written, is damaged, or is of another run."""


class TrainingError(TutorialError):
    """An update that would not leave the policy with finite weights."""
