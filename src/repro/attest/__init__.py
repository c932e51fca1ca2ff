"""Signed verifications: who says that a run can be had again, and whether those are enough whom one trusts."""
