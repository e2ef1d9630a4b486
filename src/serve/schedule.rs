//! Who gets how much of a batch.

/// Shares of a batch of `room` tokens among sequences that need so many (at least 1 each): what is left goes in equal
/// parts to those that need more, so that a short prompt does not wait for a long one. There are no more of them than
/// `room`.
pub(super) fn shares(room: usize, needs: &[usize]) -> Vec<usize> {
    debug_assert!(needs.len() <= room && !needs.contains(&0));
    let mut shares = vec![1; needs.len()];
    let mut left = room.saturating_sub(needs.len());
    loop {
        let open: Vec<usize> = (0..needs.len()).filter(|&i| shares[i] < needs[i]).collect();
        if open.is_empty() || left == 0 {
            return shares;
        }
        let part = (left / open.len()).max(1);
        for i in open {
            let more = part.min(needs[i] - shares[i]).min(left);
            shares[i] += more;
            left -= more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_running_sequence_gets_its_token_and_prompts_share_the_rest() {
        assert_eq!(shares(16, &[1, 100, 1, 100]), [1, 7, 1, 7]);
        assert_eq!(shares(16, &[3, 100]), [3, 13]);
        assert_eq!(shares(3, &[9, 9, 9]), [1, 1, 1]);
        assert_eq!(shares(5, &[4, 4]), [3, 2]);
        assert_eq!(shares(8, &[]), [0; 0]);
    }

    proptest! {
        #[test]
        fn shares_fill_the_batch_and_never_more(
            room in 40usize..600,
            needs in prop::collection::vec(1usize..400, 0..40),
        ) {
            let shares = shares(room, &needs);
            prop_assert!(shares.iter().zip(&needs).all(|(share, need)| share <= need));
            prop_assert_eq!(shares.iter().sum::<usize>(), room.min(needs.iter().sum()));
            prop_assert!(shares.iter().all(|share| *share > 0));
            // Who gets less than it needs gets no less than others, but for one token of rounding.
            for (i, share) in shares.iter().enumerate().filter(|(i, share)| **share < needs[*i]) {
                let most = shares.iter().max().copied().unwrap_or(0);
                prop_assert!(share + 1 >= most, "{i}: {shares:?} of {needs:?}");
            }
        }
    }
}
