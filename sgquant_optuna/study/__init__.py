"""What a study holds and says: plan, record, trials, report. It never imports torch."""
