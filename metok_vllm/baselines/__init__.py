"""What METok is compared with: other rules that choose visual tokens, behind the same engine."""
