-- Configurations that were measured more than once. None is expected of our sampler.
-- Parameters: study.
SELECT
    b.value_json AS bit_widths,
    COUNT(*) AS trials,
    MIN(t.number) AS first_trial,
    MAX(t.number) AS last_trial
FROM studies s
JOIN trials t ON t.study_id = s.study_id AND t.state = 'COMPLETE'
JOIN trial_user_attributes b ON b.trial_id = t.trial_id AND b.key = 'bit_widths'
WHERE s.study_name = :study
GROUP BY b.value_json
HAVING COUNT(*) > 1
ORDER BY first_trial
