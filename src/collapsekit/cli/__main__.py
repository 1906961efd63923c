"""`python -m collapsekit.cli`."""

from collapsekit.cli import main

raise SystemExit(main())
