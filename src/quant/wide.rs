//! Plain loops, compiled for the vectors of the processor that is there.
#![allow(unsafe_code)]

/// Calls `f`, marked `#[inline(always)]`, compiled for AVX2 where the processor has it, else as it is. What it returns is the same, bit for bit:
/// the same operations in the same order, several at once.
///
/// Only what the compiler inlines into `f` is compiled so: mark the loops `#[inline(always)]`, and call it for a
/// thousand elements or more.
#[inline]
pub(crate) fn wide<T>(f: impl FnOnce() -> T) -> T {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2<T>(f: impl FnOnce() -> T) -> T {
            f()
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { avx2(f) };
        }
    }
    f()
}

#[cfg(test)]
mod tests {
    use super::wide;

    #[test]
    fn vectors_change_no_bit() {
        let x: Vec<f32> = (0..1000u16).map(|i| (f32::from(i) * 0.37).sin()).collect();
        let sum = |y: &mut [f64]| {
            for (y, pair) in y.iter_mut().zip(x.windows(2)) {
                *y += f64::from(pair[0] * pair[1] + 0.1);
            }
        };
        let (mut a, mut b) = (vec![0.3; 999], vec![0.3; 999]);
        sum(&mut a);
        wide(
            #[inline(always)]
            || sum(&mut b),
        );
        assert_eq!(a, b);
    }
}
