-- Complete trials in each hour (UTC), and their mean seconds as the objective measured them.
-- Parameters: study.
SELECT
    SUBSTR(CAST(t.datetime_complete AS CHAR(19)), 1, 13) AS hour,
    COUNT(*) AS trials,
    AVG(CAST(x.value_json AS DECIMAL(30, 6))) AS mean_seconds
FROM studies s
JOIN trials t ON t.study_id = s.study_id AND t.state = 'COMPLETE'
LEFT JOIN trial_user_attributes x ON x.trial_id = t.trial_id AND x.key = 'seconds'
WHERE s.study_name = :study
GROUP BY SUBSTR(CAST(t.datetime_complete AS CHAR(19)), 1, 13)
ORDER BY hour
