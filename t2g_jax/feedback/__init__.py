"""From a critique to spans and token rewards, by a judge or a reward model."""
