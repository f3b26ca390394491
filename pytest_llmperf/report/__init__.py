"""Reports: format verdicts as text, HTML and exports; no verdict is made here."""
