"""Makes the assertions of the rig tell what they compared."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("chaos_rig")
