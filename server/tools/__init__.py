"""The tools of `interlock policy`, one module each: from paths to a `Report`. What they know of policies is in guard."""
