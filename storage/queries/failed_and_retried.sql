-- Trials that failed, and those that run a failed one again (retry_of). Trials that a worker began
-- and gave up because the study had all it asked for are left out.
-- Parameters: study.
SELECT
    t.number AS trial,
    t.state AS state,
    r.value_json AS retry_of,
    COALESCE(REPLACE(w.value_json, '"', ''), 'unknown') AS worker,
    t.datetime_start AS started
FROM studies s
JOIN trials t ON t.study_id = s.study_id
LEFT JOIN trial_system_attributes r ON r.trial_id = t.trial_id AND r.key = 'failed_trial'
LEFT JOIN trial_user_attributes w ON w.trial_id = t.trial_id AND w.key = 'worker'
LEFT JOIN trial_user_attributes e ON e.trial_id = t.trial_id AND e.key = 'sgquant:surplus'
WHERE s.study_name = :study
    AND e.trial_id IS NULL
    AND (t.state = 'FAIL' OR r.trial_id IS NOT NULL)
ORDER BY trial
