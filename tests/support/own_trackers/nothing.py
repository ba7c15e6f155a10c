"""A module without a tracker."""
