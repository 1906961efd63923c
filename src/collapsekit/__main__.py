"""`python -m collapsekit`."""

from collapsekit.cli import main

raise SystemExit(main())
