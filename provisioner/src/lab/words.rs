//! Help with mistyped words.

/// The known word that `typed` most likely meant.
pub(super) fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    let limit = (typed.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|word| (distance(&typed, &word.to_lowercase()), word))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, word)| word)
}

/// `did you mean "x"?`, or the list of what there is.
pub(crate) fn hint<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
    what_there_is: &str,
) -> String {
    if let Some(word) = nearest(typed, known.clone()) {
        return format!("did you mean {word:?}?");
    }
    let list: Vec<&str> = known.into_iter().collect();
    if list.is_empty() {
        format!("{what_there_is} none")
    } else {
        format!("{what_there_is} {}", list.join(", "))
    }
}

/// Edit distance: insertions, deletions, substitutions, and swaps of neighbours count 1 each.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let width = b.len() + 1;
    let mut cost = vec![0; (a.len() + 1) * width];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            cost[i * width + j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let substitution = cost[(i - 1) * width + j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let mut best =
                        substitution.min(cost[(i - 1) * width + j] + 1).min(cost[i * width + j - 1] + 1);
                    if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                        best = best.min(cost[(i - 2) * width + j - 2] + 1);
                    }
                    best
                }
            };
        }
    }
    cost[a.len() * width + b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_word() {
        let known = ["address", "subnet", "role"];
        assert_eq!(nearest("adress", known), Some("address"));
        assert_eq!(nearest("sbunet", known), Some("subnet"));
        assert_eq!(nearest("Role", known), Some("role"));
        assert_eq!(nearest("gateway", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn hint_lists_what_there_is() {
        assert_eq!(hint("gateway", ["a", "b"], "the keys here are"), "the keys here are a, b");
        assert_eq!(hint("lan-b", ["lan-a"], "the subnets are"), "did you mean \"lan-a\"?");
    }
}
