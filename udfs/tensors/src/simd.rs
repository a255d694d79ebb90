//! Loops as vectors of the machine that they run on.

/// Functions that the compiler turns into vectors once for each kind of machine; the widest that is there is chosen when they are called. Nothing
/// is fused or reordered: the bits are those of any other machine. Generics, with all lifetimes, stand in brackets.
///
/// The body must be part of the function that is compiled for a machine: as a closure it would be one of its own, for any machine, wherever the
/// compiler leaves it there.
macro_rules! vectors {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident [$($generics:tt)*] ($($arg:ident: $type:ty),*) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name<$($generics)*>($($arg: $type),*) $(-> $result)? {
            struct Work<T>(T);
            impl<$($generics)*> pulp::NullaryFnOnce for Work<($($type,)*)> {
                type Output = $crate::simd::vectors!(@result $($result)?);

                #[inline(always)]
                fn call(self) -> Self::Output {
                    // As arguments, slices are known not to overlap.
                    #[inline(always)]
                    fn body<$($generics)*>($($arg: $type),*) $(-> $result)? $body
                    let ($($arg,)*) = self.0;
                    body($($arg),*)
                }
            }
            pulp::Arch::new().dispatch(Work(($($arg,)*)))
        }
    )*};
    (@result) => { () };
    (@result $result:ty) => { $result };
}
pub(crate) use vectors;
